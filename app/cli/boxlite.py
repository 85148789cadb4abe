"""The boxlite runtime's part of `bulkhead probe`: its server, and whether this machine could run one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli import kvm
from app.cli.host import LayerReport

if TYPE_CHECKING:
    import httpx

    from app.settings.boxlite import BoxliteSettings

GRACE_SECONDS = 10.0
KEY_CURE = "set BULKHEAD_BOXLITE__API_KEY to the key that the server was started with"
KVM_CURE = "needed only for a BoxLite server on this host: enable nested virtualization, or use deploy/boxlite"


def probe_boxlite(settings: BoxliteSettings) -> list[LayerReport]:
    if not settings.in_use or settings.url is None:
        cure = "set BULKHEAD_BOXLITE__URL to use a BoxLite server"
        server = LayerReport("server", False, "not configured", cure, needed=False, runtime="boxlite")
    else:
        key = settings.api_key.get_secret_value() if settings.api_key is not None else None
        server = ask_server(settings.url, key, settings.path_prefix)
    return [server, look_at_kvm()]


def ask_server(url: str, key: str | None, path_prefix: str | None = None) -> LayerReport:
    """Asks the server, and reports one sentence whatever answers. The first request needs no key, the second does."""
    import httpx

    if key and not (key.isascii() and key.isprintable()):
        return _server(False, "the key has characters that a header cannot have", KEY_CURE)
    boxes = "/".join(part for part in ("v1", path_prefix, "boxes") if part)
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=url, timeout=GRACE_SECONDS, trust_env=False) as client:
            config = _object(client.get("v1/config"))
            answer = client.get(boxes, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        from app.client.errors import reason_of

        return _server(False, f"nothing answers at {url} ({reason_of(error)})", "start the BoxLite server")
    if config is None or "capabilities" not in config:
        return _server(
            False, f"the server at {url} is not a BoxLite server", "set BULKHEAD_BOXLITE__URL to the address of one"
        )
    if answer.status_code in {401, 403}:
        said = "refuses the key" if key else "wants a key"
        return _server(False, f"the server at {url} {said} ({answer.status_code})", KEY_CURE)
    listed = (_object(answer) or {}).get("boxes")
    if not isinstance(listed, list):
        return _server(False, f"the server at {url} lists no boxes ({answer.status_code})", "look at its log")
    return _server(True, f"answers at {url}, with {len(listed)} boxes")


def _object(answer: httpx.Response) -> dict[str, object] | None:
    try:
        found = answer.json() if answer.is_success else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _server(available: bool, detail: str, cure: str | None = None) -> LayerReport:
    return LayerReport("server", available, detail, cure, runtime="boxlite")


def look_at_kvm(device: str = kvm.DEVICE) -> LayerReport:
    if not kvm.is_supported():
        return _kvm(False, f"not probed on this architecture ({os.uname().machine})")
    if not Path(device).exists():
        return _kvm(False, f"there is no {device}", KVM_CURE)
    if not os.access(device, os.R_OK | os.W_OK):
        return _kvm(False, f"{device} cannot be opened", "start as root, or join the group that owns it")
    attempt = kvm.try_guest(device)
    steps = [kvm.STEPS[step] for step in attempt.reached]
    if attempt.refusal is None:
        return _kvm(True, f"a small guest ran these steps (no whole kernel was booted): {', '.join(steps)}")
    before = f"a guest stopped after {steps[-1]}" if steps else f"{device} cannot run a guest"
    return _kvm(False, f"{before}: {attempt.refusal}{_explanation()}", KVM_CURE)


def _explanation() -> str:
    """No reason for a no, which was tried: what most likely stands behind it."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    if {"vmx", "svm"} & set(flags.split()):
        return ""
    return "; the processor shows neither VMX nor SVM"


def _kvm(available: bool, detail: str, cure: str | None = None) -> LayerReport:
    return LayerReport("kvm", available, detail, cure, needed=False, runtime="boxlite")
