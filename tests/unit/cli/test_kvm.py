"""The tiny guest of `bulkhead probe`: a test cannot know what this machine's KVM can do, only that it is told truly."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli import kvm
from app.cli.boxlite import look_at_kvm

needs_kvm = pytest.mark.skipif(
    not kvm.is_supported() or not Path(kvm.DEVICE).exists(), reason="no /dev/kvm of an x86-64 processor"
)


def test_interrupts_lead_to_their_code() -> None:
    code = memoryview(kvm.GUEST)
    assert code[kvm.FAULT - kvm.CODE :][:4].hex() == "4883c408"  # add rsp,8
    assert code[kvm.TIMER - kvm.CODE :][:2].hex() == "c783"  # mov dword [rbx+...]
    assert len(code) < kvm.GDT - kvm.CODE


def test_device_that_is_no_kvm_is_refused_with_the_kernels_word() -> None:
    assert kvm.try_guest("/dev/null") == kvm.Attempt("", "Inappropriate ioctl for device")


def test_machine_without_the_device_gets_the_cure(tmp_path: Path) -> None:
    layer = look_at_kvm(str(tmp_path / "kvm"))
    assert (layer.available, layer.needed, layer.runtime) == (False, False, "boxlite")
    if kvm.is_supported():
        assert layer.detail == f"there is no {tmp_path}/kvm"
        assert layer.cure is not None


@needs_kvm
def test_guest_comes_to_its_end_or_says_where_it_did_not() -> None:
    attempt = kvm.try_guest()
    assert "".join(kvm.STEPS).startswith(attempt.reached)
    assert (attempt.refusal is None) == (attempt.reached == "".join(kvm.STEPS))
    layer = look_at_kvm()
    assert layer.available == (attempt.refusal is None)
    assert (attempt.refusal or "no whole kernel was booted") in layer.detail


@needs_kvm
def test_guest_that_does_not_end_is_ended() -> None:
    assert kvm.try_guest(code=bytes.fromhex("b072e610 ebfe"), limit_seconds=0.3) == kvm.Attempt(
        "r", "it did not end within 0.3 s"
    )


@needs_kvm
def test_wrong_word_of_the_guest_is_no_progress() -> None:
    found = kvm.try_guest(code=bytes.fromhex("b072e610 b02ee610"))
    assert found == kvm.Attempt("r", "protected mode did not do what it has to")
