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
    """Exactly one of `content` and `content_base64`. Parents are made."""

    path: str = Field(description="absolute, or relative to /workspace; without ..")
    content: str | None = Field(None, description="text, written as UTF-8")
    content_base64: Base64 | None = Field(None, description="bytes")
    mode: Mode = Field("0644", description="octal, as in chmod(1)")


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
    ttl_seconds: Seconds | None = Field(None, description="destroyed when it passes; absent: the timeout and an hour")
    command: Arguments = Field(description="the exact argv, no shell")
    timeout_seconds: Seconds | None = Field(None, description="at most and by default the limit wall_seconds")
    on_output_limit: OnOutputLimit = OnOutputLimit.DROP_OLDEST
    files: Annotated[list[RunFile], Field(max_length=FILES, fail_fast=True)] = Field(
        [], description="put into the sandbox before the command starts"
    )
    stdin: str | None = Field(None, description="text, fed as UTF-8; not beside `stdin_base64`")
    stdin_base64: Base64 | None = Field(None, description="bytes, fed as they are")
    tty: Tty = None


class RunResult(Answer):
    """The sandbox is gone when this comes."""

    sandbox_id: str
    runtime: str
    exit: Exit
    stdout: str
    stderr: str
    stdout_truncated: bool = Field(description="bytes of it are missing")
    stderr_truncated: bool = Field(description="bytes of it are missing")
    encoding: Literal["utf-8", "base64"] = Field(description="of stdout and stderr, both alike")
