"""What `POST /run` takes and gives, as schemas."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from app.api.schemas.answers import Answer, Exit
from app.api.schemas.limits import LimitsRequest
from app.api.schemas.requests import SandboxFields, Tty
from app.api.schemas.strict import Arguments, Mode, Seconds, Strict
from app.core.models import OnOutputLimit

FILES = 1024

Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]


class RunFile(Strict):
    """A file with exactly one of `content` and `content_base64`. Its parents are made."""

    path: str = Field(description="absolute, or relative to /workspace; without ..")
    content: str | None = Field(None, description="text, written as UTF-8")
    content_base64: Base64 | None = Field(None, description="bytes")
    mode: Mode = Field("0644", description="permissions in octal, as in chmod(1)")


class Run(SandboxFields):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"command": ["python3", "-c", "print(1 + 1)"], "timeout_seconds": 10},
                {"command": ["sh", "main.sh"], "files": [{"path": "main.sh", "content": "cat"}], "stdin": "hello\n"},
            ]
        }
    )

    limits: LimitsRequest = Field(
        LimitsRequest(), description="`output_bytes` is 1 MiB by default here, and 8 MiB at most"
    )
    ttl_seconds: Seconds | None = Field(
        None, description="the sandbox is destroyed after this time (default: one hour more than the timeout)"
    )
    command: Arguments = Field(description="the exact argv; it is not a shell line")
    timeout_seconds: Seconds | None = Field(None, description="at most, and by default, the limit wall_seconds")
    on_output_limit: OnOutputLimit = OnOutputLimit.DROP_OLDEST
    files: Annotated[list[RunFile], Field(max_length=FILES, fail_fast=True)] = Field(
        [], description="files that are put into the sandbox before the command starts"
    )
    stdin: str | None = Field(None, description="stdin as text in UTF-8; excludes `stdin_base64`")
    stdin_base64: Base64 | None = Field(None, description="stdin as bytes")
    tty: Tty = None


class RunResult(Answer):
    """The result of a run. The sandbox is gone when it comes."""

    sandbox_id: str
    runtime: str
    exit: Exit
    stdout: str
    stderr: str
    stdout_truncated: bool = Field(description="true if bytes are missing")
    stderr_truncated: bool = Field(description="true if bytes are missing")
    encoding: Literal["utf-8", "base64"] = Field(description="encoding of both stdout and stderr")
