"""The schemas of runs: `POST /run` and `POST /sandboxes/{sandbox_id}/run`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from app.api.schemas.answers import AnswerSchema, Exit, RefusedHost
from app.api.schemas.limits import ExecutionLimitsRequest, LimitsRequest, OutputBytes, ProcessLimitsRequest
from app.api.schemas.requests import OUTPUT_MODE, STDERR, SandboxFields, Tty
from app.api.schemas.strict import Arguments, Directory, Environment, Mode, Seconds, Strict
from app.core.collecting import FILES as FILES_BACK
from app.core.collecting import PATTERNS, TOTAL_BYTES
from app.core.limits import MIB
from app.core.models import OnOutputLimit, OutputMode, Stderr

FILES = 1024

Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]


class RunFile(Strict):
    """A file with exactly one of `content` and `content_base64`. Its parents are made."""

    path: str = Field(description="absolute, or relative to /workspace; without ..")
    content: str | None = Field(None, description="text, written as UTF-8")
    content_base64: Base64 | None = Field(None, description="bytes")
    mode: Mode = Field("0644", description="permissions in octal, as in chmod(1)")


class JobFields(Strict):
    """One command with its input and what comes back. Both kinds of runs have these fields."""

    command: Arguments = Field(description="the exact argv; it is not a shell line")
    timeout_seconds: Seconds | None = Field(None, description="at most, and by default, the limit wall_seconds")
    stderr: Stderr = Field(Stderr.SEPARATE, description=STDERR)
    on_output_limit: OnOutputLimit = OnOutputLimit.DROP_OLDEST
    output_mode: OutputMode | None = Field(None, description=OUTPUT_MODE)
    files: Annotated[list[RunFile], Field(max_length=FILES, fail_fast=True)] = Field(
        [], description="files that are put into the sandbox before the command starts"
    )
    stdin: str | None = Field(None, description="stdin as text in UTF-8; excludes `stdin_base64`")
    stdin_base64: Base64 | None = Field(None, description="stdin as bytes")
    tty: Tty = None
    collect: Annotated[list[str], Field(max_length=PATTERNS, fail_fast=True)] = Field(
        [],
        description="files to bring back: paths relative to /workspace, with *, ? and [...] as in a shell; "
        f"{FILES_BACK} files and {TOTAL_BYTES // MIB} MiB at most",
    )


class RunLimits(LimitsRequest, ProcessLimitsRequest):
    """The limits of the sandbox, and of its one execution."""


class Run(SandboxFields, JobFields):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"command": ["python3", "-c", "print(1 + 1)"], "timeout_seconds": 10},
                {"command": ["sh", "main.sh"], "files": [{"path": "main.sh", "content": "cat"}], "stdin": "hello\n"},
                {"command": ["sh", "-c", "echo 6 > result.txt"], "collect": ["*.txt"]},
            ]
        }
    )

    limits: RunLimits = Field(RunLimits(), description="`output_bytes` is 1 MiB by default here, and 8 MiB at most")
    ttl_seconds: Seconds | None = Field(
        None, description="the sandbox is destroyed after this time (default: one hour more than the timeout)"
    )


class RunInSandboxLimits(ExecutionLimitsRequest):
    """The limits of one run in a sandbox. None is above the sandbox's own."""

    output_bytes: OutputBytes | None = Field(
        None, description="output that is kept of each channel, in bytes (default: 1 MiB; at most 8 MiB)"
    )


class RunInSandbox(JobFields):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "command": ["sh", "step.sh"],
                    "files": [{"path": "step.sh", "content": "echo 2; mkdir out; echo done > out/log.txt"}],
                    "collect": ["out/log.txt", "out/*.png"],
                },
                {"command": ["python3", "-c", "print(6 * 7)"]},
            ]
        }
    )

    env: Environment = Field({}, description="more variables, which replace those of the sandbox")
    workdir: Directory | None = Field(None, description="working directory (default: that of the sandbox)")
    limits: RunInSandboxLimits = RunInSandboxLimits()


class CollectedFile(AnswerSchema):
    """One file that was brought back, or the reason why it was not."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    path: str = Field(description="relative to /workspace; U+FFFD stands for what is not UTF-8")
    path_base64: Base64 | SkipJsonSchema[None] = Field(
        default_factory=lambda: None, description="its bytes; absent where they are UTF-8"
    )
    content_base64: Base64 | SkipJsonSchema[None] = Field(
        default_factory=lambda: None, description="absent where there is an `error`"
    )
    error: str | SkipJsonSchema[None] = Field(
        default_factory=lambda: None, description="why it was not brought back, or why nothing was"
    )


class RunNetwork(AnswerSchema):
    refused: list[RefusedHost] = Field(
        description="hosts that were refused meanwhile, the first 32; also to other commands of the sandbox"
    )


class Outputs(AnswerSchema):
    exit: Exit
    stdout: str
    stderr: str
    output_mode: OutputMode = Field(description="`plain`: output may be lost unnoticed")
    stdout_truncated: bool = Field(description="true if bytes are missing")
    stderr_truncated: bool = Field(description="true if bytes are missing")
    encoding: Literal["utf-8", "base64"] = Field(description="encoding of both stdout and stderr")
    network: RunNetwork
    collected: list[CollectedFile] = Field(description="in the order of `collect`, then of their names")


class RunResult(Outputs):
    """The result of a run. The sandbox is gone when it comes."""

    sandbox_id: str
    runtime: str


class RunInSandboxResult(Outputs):
    """The result of a run in a sandbox that stays, as does the record of the execution."""

    sandbox_id: str
    execution_id: str
