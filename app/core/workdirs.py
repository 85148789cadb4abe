"""The directory in which the commands of a new sandbox start."""

from __future__ import annotations

from app.core.errors import AccessDenied, DiskFull, InvalidRequest, NotFound, WrongType
from app.core.files import FileKind, Files

WORKSPACE = "/workspace"


def may_be_made(workdir: str) -> bool:
    """Whether a missing directory is made: below /workspace it is, elsewhere it must exist."""
    return workdir.startswith(f"{WORKSPACE}/")


async def prepare_workdir(files: Files, workdir: str) -> None:
    """Makes the directory as the sandbox's user, or checks that it exists. Raises InvalidRequest, and otherwise what
    `Files` raises."""
    if workdir == WORKSPACE:
        return
    path = workdir.encode()
    try:
        if may_be_made(workdir):
            await files.make_directory(path)
        elif (kind := (await files.stat(path)).kind) is not FileKind.DIRECTORY:
            raise InvalidRequest.at("/workdir", f"is {kind.noun} in the sandbox, and no directory")
    except NotFound:
        sentence = f"does not exist in the sandbox; only a directory below {WORKSPACE} is made"
        raise InvalidRequest.at("/workdir", sentence) from None
    except InvalidRequest as error:
        raise InvalidRequest.at("/workdir", error.errors[0].detail) from None
    except (WrongType, AccessDenied, DiskFull) as error:
        raise InvalidRequest.at("/workdir", f"cannot be used: {error}") from None
