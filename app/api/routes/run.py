"""Runs: a request has a command with its files and stdin, the answer has its exit, output and files."""

from __future__ import annotations

import binascii
from dataclasses import replace

from fastapi import APIRouter, Request, Response

from app.api.context import ApplicationContext, context_of, visitor_of, waiting_request
from app.api.http.bodies import read_json
from app.api.http.disconnect import until_disconnect
from app.api.http.paced import PIECE
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import json_body, problems
from app.api.routes.sandboxes import AT_A_CREATE, OF_A_CREATE
from app.api.schemas.limits import ProcessLimitsRequest
from app.api.schemas.run_answers import answer_bytes, response_of
from app.api.schemas.runs import JobFields, Run, RunFile, RunInSandbox, RunInSandboxResult, RunResult
from app.api.schemas.specs import (
    DEFAULT_TTL_SECONDS,
    execution_limits_of,
    sandbox_spec,
    terminal_of,
    timeout_of,
    workdir_of,
)
from app.core.capabilities import Capability
from app.core.collecting import patterns_of
from app.core.commands import is_merged
from app.core.errors import InvalidRequest, LimitTooHigh
from app.core.execution_limits import EXECUTION_LIMITS
from app.core.limits import LimitRange
from app.core.models import Command, SandboxSpec, Stdin
from app.core.network_log import REFUSED
from app.core.oneshot import OneShot, run_once
from app.core.placing import PlacedFile
from app.core.reservations import Reservation
from app.core.running import Job, run_in
from app.core.sandboxes import Sandbox
from app.core.timeslices import TimeSlices

router = APIRouter(tags=["executions"], route_class=StrictRoute)

# Both channels are held in memory as a whole, and travel as one JSON document.
OUTPUT_DEFAULT, OUTPUT_CEILING = 1024 * 1024, 8 * 1024 * 1024


@router.post(
    "/run",
    operation_id="run_once",
    summary="Run one command in a sandbox of its own",
    response_model=RunResult,
    responses=problems(
        *(*OF_A_CREATE, "unsupported_by_runtime", "wrong_state", "wrong_type", "access_denied"), examples=AT_A_CREATE
    ),
    openapi_extra=json_body(Run),
)
async def run(request: Request) -> Response:
    """Creates a sandbox, puts `files` into it, runs the command with `stdin`, reads the files of `collect`, and
    destroys the sandbox. The sandbox is gone when the answer comes, and no record of it is kept. A command that fails,
    or cannot be started, is a 200 whose `exit` says so. If the client disconnects, the run ends, unless the client sent
    an Idempotency-Key."""
    context = context_of(request)
    asked = await read_json(request, Run)
    await TimeSlices.of_loop().next()  # 8 MiB were parsed; to decode them takes as long once more
    shot = await _shot(asked, context)
    client = visitor_of(request).client
    with _RunAnswer(context, client, shot.job, shot.spec.limits.output_bytes, shot.spec) as answer:
        with waiting_request(request), context.shares.bodies.taking(client) as take:
            take(_bytes_of(shot.job))
            run = run_once(context.sandboxes, shot, client, answer.reserve)
            outcome = await until_disconnect(request.receive, run)
        return await response_of(outcome, {"sandbox_id": outcome.sandbox_id, "runtime": shot.spec.runtime}, answer)


@router.post(
    "/sandboxes/{sandbox_id}/run",
    operation_id="run_in_sandbox",
    summary="Run one command in a sandbox that stays",
    response_model=RunInSandboxResult,
    responses=problems(
        "invalid_request",
        "limit_too_high",
        "capability_missing",
        "not_found",
        "unsupported_by_runtime",
        "wrong_state",
        "wrong_type",
        "access_denied",
        "disk_full",
        "unsupported_media_type",
        "payload_too_large",
        "bound_exceeded",
        "capacity_exceeded",
        "backend_error",
        "backend_unavailable",
        "backend_timeout",
    ),
    openapi_extra=json_body(RunInSandbox),
)
async def run_in_sandbox(request: Request, sandbox_id: str) -> Response:
    """Puts `files` into the sandbox, runs the command with `stdin`, and reads the files of `collect`. The sandbox stays
    as the command leaves it, and the execution is listed like any other. A sandbox that is `creating` is waited for. If
    the client disconnects, its command ends, unless the client sent an Idempotency-Key."""
    context = context_of(request)
    sandbox = context.sandboxes.use(sandbox_id)
    asked = await read_json(request, RunInSandbox)
    await TimeSlices.of_loop().next()
    job = _job_in(asked, sandbox, context)
    client = visitor_of(request).client
    with _RunAnswer(context, client, job, job.command.output_bytes or 0, sandbox.spec) as answer:
        with waiting_request(request), context.shares.bodies.taking(client) as take:
            take(_bytes_of(job))
            outcome = await until_disconnect(request.receive, run_in(context.sandboxes, sandbox, job, answer.reserve))
        return await response_of(outcome, {"sandbox_id": sandbox.id, "execution_id": outcome.execution_id}, answer)


class _RunAnswer(Reservation):
    """Memory for the answer of one run. Raises BoundExceeded when the largest answer could never have it."""

    def __init__(
        self, context: ApplicationContext, client: str, job: Job, output_bytes: int, spec: SandboxSpec
    ) -> None:
        super().__init__(context.shares.run_answers, client)
        self._collect = job.collect
        self._refused = REFUSED if spec.policy.network.mode == "proxy" else 0
        context.shares.answers.check_possible(answer_bytes(2 * output_bytes, job.collect, self._refused))

    async def reserve(self, output: int) -> None:
        """`output`: stored bytes of both channels together. A small answer is not waited for and does not count."""
        if (size := answer_bytes(output, self._collect, self._refused)) > PIECE:
            await self.take(size)


async def _shot(asked: Run, context: ApplicationContext) -> OneShot:
    job = _job(asked)
    needs = {Capability.STDIN} if job.stdin else set()
    needs |= {Capability.PTY} if asked.tty is not None else set()
    needs |= {Capability.MERGED_OUTPUT} if is_merged(job.command) else set()
    needs |= {Capability.FILES} if job.files or job.collect else set()
    limited = [name for name in ProcessLimitsRequest.model_fields if getattr(asked.limits, name) is not None]
    needs |= {EXECUTION_LIMITS[name].needs for name in limited}
    spec = await sandbox_spec(asked, _with_output_range(context), more=frozenset(needs))
    timeout = timeout_of(asked.timeout_seconds, spec, context)
    if asked.ttl_seconds is None:
        spec = replace(spec, ttl_seconds=min(timeout + DEFAULT_TTL_SECONDS, context.ttl_ceiling_seconds))
    limits = execution_limits_of(asked.limits, spec, context)
    command = replace(job.command, workdir=spec.workdir, timeout_seconds=timeout, limits=limits)
    return OneShot(spec, replace(job, command=command))


def _with_output_range(context: ApplicationContext) -> ApplicationContext:
    operators = context.ranges["output_bytes"]
    ceiling = min(OUTPUT_CEILING, operators.ceiling)
    return replace(
        context, ranges={**context.ranges, "output_bytes": LimitRange(min(OUTPUT_DEFAULT, ceiling), ceiling)}
    )


def _job_in(asked: RunInSandbox, sandbox: Sandbox, context: ApplicationContext) -> Job:
    job = _job(asked)
    return replace(
        job,
        command=replace(
            job.command,
            env=asked.env,
            workdir=workdir_of(asked.workdir, sandbox.spec),
            timeout_seconds=timeout_of(asked.timeout_seconds, sandbox.spec, context),
            output_bytes=_output_bytes(asked.limits.output_bytes, sandbox.spec.limits.output_bytes),
            limits=execution_limits_of(asked.limits, sandbox.spec, context, asked.limits.memory_mib),
        ),
    )


def _output_bytes(asked: int | None, sandboxes: int) -> int:
    ceiling = min(OUTPUT_CEILING, sandboxes)
    if asked is not None and asked > ceiling:
        raise LimitTooHigh("/limits/output_bytes", asked, ceiling)
    return min(OUTPUT_DEFAULT, ceiling) if asked is None else asked


def _job(asked: JobFields) -> Job:
    """With what both runs say in the same way; the rest of its command is not set yet."""
    stdin = _bytes(asked.stdin, asked.stdin_base64, "/stdin_base64", "stdin")
    command = Command(
        argv=tuple(asked.command),
        stdin=Stdin.OPEN if stdin or asked.tty is not None else Stdin.NONE,
        stderr=asked.stderr,
        on_output_limit=asked.on_output_limit,
        output_mode=asked.output_mode,
        tty=terminal_of(asked.tty),
    )
    files = [_file(file, f"/files/{number}") for number, file in enumerate(asked.files)]
    return Job(command, files, stdin, patterns_of(asked.collect))


def _bytes_of(job: Job) -> int:
    return len(job.stdin) + sum(len(file.content) for file in job.files)


def _file(file: RunFile, pointer: str) -> PlacedFile:
    if file.content is None and file.content_base64 is None:
        raise InvalidRequest.at(pointer, "needs content or content_base64")
    content = _bytes(file.content, file.content_base64, f"{pointer}/content_base64", "content")
    return PlacedFile(file.path, content, int(file.mode, 8))


def _bytes(text: str | None, encoded: str | None, pointer: str, beside: str) -> bytes:
    if encoded is None:
        return b"" if text is None else text.encode()
    if text is not None:
        raise InvalidRequest.at(pointer, f"must not be sent together with {beside}; send one of the two")
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError as error:  # not ASCII, or not base64
        raise InvalidRequest.at(pointer, f"is not base64: {error}") from None
