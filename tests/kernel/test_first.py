"""The whole way: one command, from the request to the kernel and back."""

from __future__ import annotations

from tests.service import Service


def test_a_command_runs_and_its_output_comes_back(service: Service, sandbox: str) -> None:
    done = service.run(sandbox, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert done["exit"]["reason"] == "exited"
    assert done["exit"]["code"] == 3
    assert (done["stdout"], done["stderr"]) == ("out\n", "err\n")


def test_no_client_chosen_id_can_take_the_name_of_a_group_of_ours(service: Service) -> None:
    for name in ("workers", "0", "service", "payload"):
        sandbox = service.create(id=name)
        assert service.run(sandbox, "true")["exit"]["code"] == 0
        assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
    assert service.run(service.create(), "true")["exit"]["code"] == 0
