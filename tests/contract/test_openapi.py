"""openapi.yaml is the code, and says everything that a client needs."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from app.api.http.problem_types import PROBLEMS, TABLE
from app.api.http.problems import problem_of
from app.api.openapi.documents import EXAMPLE_ID
from app.api.openapi.examples import EXAMPLES
from app.api.routes import directories
from app.api.routes.sandboxes import AT_A_CREATE
from app.api.schemas import answers, requests, runs
from app.api.schemas.problem_schema import Problem
from app.api.streams import frames
from app.core.limits import LIMITS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "openapi.yaml").read_text())
METHODS = {"get", "head", "put", "post", "patch", "delete"}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, found in DOCUMENT["paths"].items():
        for method, operation in found.items():
            assert method in METHODS
            yield path, method, operation


def model_of(name: str) -> type[BaseModel] | None:
    found = (getattr(module, name, None) for module in (answers, requests, runs, frames, directories))
    return next((each for each in found if isinstance(each, type) and issubclass(each, BaseModel)), None)


def strings(node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, str):
                yield key, value
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from nodes(value)


def test_the_file_is_what_the_code_says() -> None:
    written = (ROOT / "openapi.yaml").read_text()
    assert written == runpy.run_path(str(ROOT / "scripts/openapi"))["text"](), "run `make openapi`"


def test_the_routes_are_those_of_the_api() -> None:
    execution = "/sandboxes/{sandbox_id}/executions/{execution_id}"
    assert {(method, path): operation["operationId"] for path, method, operation in operations()} == {
        ("post", "/sandboxes"): "create_sandbox",
        ("get", "/sandboxes"): "list_sandboxes",
        ("get", "/sandboxes/{sandbox_id}"): "get_sandbox",
        ("patch", "/sandboxes/{sandbox_id}"): "update_sandbox",
        ("delete", "/sandboxes/{sandbox_id}"): "delete_sandbox",
        ("post", "/sandboxes/{sandbox_id}/pause"): "pause_sandbox",
        ("post", "/sandboxes/{sandbox_id}/resume"): "resume_sandbox",
        ("post", "/sandboxes/{sandbox_id}/executions"): "create_execution",
        ("get", "/sandboxes/{sandbox_id}/executions"): "list_executions",
        ("get", execution): "get_execution",
        ("delete", execution): "delete_execution",
        ("post", f"{execution}/signal"): "signal_execution",
        ("post", f"{execution}/resize"): "resize_execution",
        ("get", f"{execution}/output"): "get_output",
        ("get", f"{execution}/stream"): "open_stream",
        ("put", f"{execution}/stdin"): "write_stdin",
        ("post", "/stream-tickets"): "create_stream_ticket",
        ("post", "/run"): "run_once",
        ("post", "/sandboxes/{sandbox_id}/run"): "run_in_sandbox",
        ("get", "/sandboxes/{sandbox_id}/usage"): "get_sandbox_usage",
        ("get", f"{execution}/usage"): "get_execution_usage",
        ("get", "/sandboxes/{sandbox_id}/network"): "list_network_events",
        ("get", "/sandboxes/{sandbox_id}/files"): "read_file",
        ("head", "/sandboxes/{sandbox_id}/files"): "stat_file",
        ("put", "/sandboxes/{sandbox_id}/files"): "write_file",
        ("delete", "/sandboxes/{sandbox_id}/files"): "delete_file",
        ("get", "/sandboxes/{sandbox_id}/directory"): "list_directory",
        ("put", "/sandboxes/{sandbox_id}/directory"): "make_directory",
        ("get", "/sandboxes/{sandbox_id}/archive"): "read_archive",
        ("put", "/sandboxes/{sandbox_id}/archive"): "write_archive",
        ("get", "/runtimes"): "list_runtimes",
        ("get", "/healthz"): "check_alive",
        ("get", "/readyz"): "check_ready",
        ("get", "/metrics"): "read_metrics",
        ("get", "/problems/{slug}"): "explain_problem",
    }


def test_every_reference_leads_somewhere() -> None:
    for key, value in strings(DOCUMENT):
        if key == "$ref":
            kind, _, name = value.removeprefix("#/components/").partition("/")
            assert name in DOCUMENT["components"][kind], value


def test_the_schema_of_a_problem_has_exactly_the_members_of_the_table() -> None:
    members = {member.name for row in TABLE for member in row.members}
    standard = {"type", "title", "status", "detail", "instance"}
    schema = DOCUMENT["components"]["schemas"]["Problem"]
    assert set(schema["properties"]) == members | standard
    assert set(schema["required"]) == standard
    for row in TABLE:
        for member in row.members:
            described = schema["properties"][member.name]["description"]
            assert f"`{row.slug}`" in described and member.meaning in described, (row.slug, member.name)


def test_an_example_of_a_problem_is_what_the_translation_makes_of_its_error() -> None:
    examples = (node.get("examples", {}) for node in nodes(DOCUMENT["paths"]))
    shown = [(slug, found["value"]) for each in examples for slug, found in each.items() if slug in PROBLEMS]
    own = [AT_A_CREATE["disk_full"]] * 2  # of POST /sandboxes and POST /run
    others = [(slug, value) for slug, value in shown if value != problem_of(PROBLEMS[slug].example).body(EXAMPLE_ID)]
    assert shown and others == [("disk_full", problem_of(error).body(EXAMPLE_ID)) for error in own]


@pytest.mark.parametrize("path", ["/sandboxes", "/run"])
def test_a_full_disk_at_a_create_is_shown_as_that_of_the_operator(path: str) -> None:
    answer = DOCUMENT["paths"][path]["post"]["responses"]["507"]["content"]["application/problem+json"]
    assert "above the reserve" in answer["examples"]["disk_full"]["value"]["detail"]


def test_every_number_has_its_width_and_no_title_names_a_class() -> None:
    """Without them generators take 32 bits for sizes in bytes, and make classes of titles."""
    for schema in nodes(DOCUMENT["components"]["schemas"]):
        if str(schema.get("type")) in {"integer", "number"} and "enum" not in schema:
            assert schema["format"] in {"int32", "int64", "double"}, schema
        assert not isinstance(schema.get("title"), str) or "status" in schema, schema  # that of an example


def test_labels_are_a_map_of_texts() -> None:
    for name in ("CreateSandbox", "UpdateSandbox"):
        labels = DOCUMENT["components"]["schemas"][name]["properties"]["labels"]
        assert labels["additionalProperties"]["type"] == "string"
        assert "patternProperties" not in labels


def test_from_what_was_made_a_link_leads_to_every_operation_on_it() -> None:
    found = {operation["operationId"]: (path, operation) for path, _, operation in operations()}
    for source, parameters in (
        ("create_sandbox", {"sandbox_id"}),
        ("create_execution", {"sandbox_id", "execution_id"}),
    ):
        links = found[source][1]["responses"]["201"]["links"]
        assert set(links) == {
            name for name, (path, _) in found.items() if set(re.findall(r"{(\w+)}", path)) == parameters
        }
        for name, link in links.items():
            target = DOCUMENT["components"]["links"][link["$ref"].rpartition("/")[2]]
            assert (target["operationId"], set(target["parameters"])) == (name, parameters)
    for lists in ("list_sandboxes", "list_executions"):
        link = found[lists][1]["responses"]["200"]["links"]["next_page"]
        assert link["operationId"] == lists
        assert link["parameters"]["cursor"] == "$response.body#/next_cursor"


def test_headers_are_described_where_they_are_sent() -> None:
    for path, method, operation in operations():
        for status, answer in operation["responses"].items():
            headers = answer["headers"]
            assert "X-Request-Id" in headers, (method, path, status)
            assert ("Retry-After" in headers) is (status in {"429", "503"})
            assert ("WWW-Authenticate" in headers) is (status == "401")


def test_every_post_and_nothing_else_takes_an_idempotency_key() -> None:
    for path, method, operation in operations():
        found = {"$ref": "#/components/parameters/IdempotencyKey"} in operation.get("parameters", [])
        assert found is (method == "post"), (method, path)
        for status, answer in operation["responses"].items():
            replayed = "Idempotency-Replayed" in answer["headers"]
            assert replayed is (method == "post" and status < "400"), (method, path, status)
        if method == "post":
            assert (
                "idempotency_mismatch"
                in operation["responses"]["422"]["content"]["application/problem+json"]["examples"]
            )


def test_what_may_be_absent_is_not_required() -> None:
    components = DOCUMENT["components"]["schemas"]
    execution = components["Execution"]
    assert set(execution["properties"]) - set(execution["required"]) == {"exit"}
    assert execution["properties"]["exit"]["$ref"] == "#/components/schemas/Exit"
    item = components["DirectoryItem"]
    assert set(item["properties"]) - set(item["required"]) == {"name_base64", "target_base64"}
    assert components["Isolation"]["required"] == ["tier"]
    assert components["Isolation"]["additionalProperties"] is True


def test_limits_have_the_floors_that_are_enforced_and_a_description() -> None:
    for name, limit in DOCUMENT["components"]["schemas"]["LimitsRequest"]["properties"].items():
        assert limit["anyOf"][0]["minimum"] == LIMITS[name].floor
        assert limit["description"] == LIMITS[name].meaning


def test_groups_come_in_the_order_of_use() -> None:
    assert [tag["name"] for tag in DOCUMENT["tags"]] == ["sandboxes", "executions", "files", "service"]
    assert "api.md" not in (ROOT / "openapi.yaml").read_text()


def test_every_operation_id_is_a_method_name_and_every_operation_has_a_summary() -> None:
    for path, method, operation in operations():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", operation["operationId"]), path
        assert operation["summary"], (method, path)


def test_every_answer_that_is_not_a_success_is_a_problem_with_an_example() -> None:
    for path, method, operation in operations():
        problems = {status: a for status, a in operation["responses"].items() if int(status) >= 400}
        assert "500" in problems, (method, path)
        for status, answer in problems.items():
            (media_type,) = answer["content"]
            assert media_type == "application/problem+json"
            content = answer["content"][media_type]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            for slug, example in content["examples"].items():
                assert PROBLEMS[slug].status == int(status)
                assert {member.name for member in PROBLEMS[slug].members} <= set(example["value"])
                Problem.model_validate(example["value"])


def test_every_json_answer_has_a_schema_with_an_example() -> None:
    for path, method, operation in operations():
        for status, answer in operation["responses"].items():
            content = answer.get("content", {}).get("application/json")
            if content is not None:
                name = content["schema"]["$ref"].rpartition("/")[2]
                assert DOCUMENT["components"]["schemas"][name]["examples"], (method, path, status)


def test_every_request_body_has_examples_that_it_takes() -> None:
    with_body = {o["operationId"]: o["requestBody"] for _, _, o in operations() if "requestBody" in o}
    assert set(with_body) == {
        *("create_sandbox", "update_sandbox", "create_execution", "signal_execution", "resize_execution"),
        *("write_stdin", "create_stream_ticket", "run_once", "run_in_sandbox", "write_file", "write_archive"),
    }
    binary = {"write_stdin": "application/octet-stream", "write_file": "application/octet-stream"}
    for name, media_type in {**binary, "write_archive": "application/x-tar"}.items():
        assert with_body.pop(name)["content"] == {media_type: {"schema": {"type": "string", "format": "binary"}}}
    for body in with_body.values():
        content = body["content"]["application/json"]
        model = model_of(content["schema"]["$ref"].rpartition("/")[2])
        assert model is not None
        assert content["examples"]
        for example in content["examples"].values():
            model.model_validate_json(json.dumps(example["value"]))


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_fit_their_schemas(name: str) -> None:
    model = model_of(name)
    assert model is not None
    model.model_validate_json(json.dumps(EXAMPLES[name]))


def test_every_answer_says_what_it_is() -> None:
    described = [
        answer["description"]
        for path in DOCUMENT["paths"].values()
        for o in path.values()
        for answer in o["responses"].values()
    ]
    assert len(described) > 100
    assert "Successful Response" not in described


def test_usage_of_an_execution_has_no_disk_in_its_example() -> None:
    found = DOCUMENT["paths"]["/sandboxes/{sandbox_id}/executions/{execution_id}/usage"]["get"]["responses"]["200"]
    example = found["content"]["application/json"]["example"]
    assert example["disk_bytes"] is None
    model = model_of("ResourceUsage")
    assert model is not None
    model.model_validate_json(json.dumps(example))


def test_every_frame_of_the_stream_is_a_schema_and_named_in_its_description() -> None:
    stream = DOCUMENT["paths"]["/sandboxes/{sandbox_id}/executions/{execution_id}/stream"]["get"]
    for frame in frames.FRAMES:
        assert frame.__name__ in DOCUMENT["components"]["schemas"]
        assert f"`{frame.__name__}`" in stream["description"]
    assert "101" in stream["responses"]


def test_examples_in_the_schemas_fit_them() -> None:
    """Those of a parent are inherited, and may lack what the child needs."""
    for name, schema in DOCUMENT["components"]["schemas"].items():
        model = model_of(name)
        for example in schema.get("examples", []):
            assert model is not None
            model.model_validate_json(json.dumps(example))


def test_what_a_runtime_may_not_know_may_be_null() -> None:
    components = DOCUMENT["components"]["schemas"]
    for name, field in (
        *(("ChannelCounts", "dropped_bytes"), ("StreamDigest", "dropped_bytes"), ("StreamGap", "to")),
        *(("Sandbox", "image"), ("Sandbox", "runtime_reason"), ("Limits", "processes")),
    ):
        assert {"type": "null"} in components[name]["properties"][field]["anyOf"], (name, field)
        assert field in components[name]["required"], (name, field)


def test_the_fields_of_a_create_and_a_start_are_these() -> None:
    components = DOCUMENT["components"]["schemas"]
    assert set(components["CreateSandbox"]["properties"]) == {
        *("runtime", "isolation_min", "image", "storage", "id", "requires", "env", "workdir", "limits", "policy"),
        *("ttl_seconds", "idle_seconds", "idle_counts", "labels", "secrets"),
    }
    assert set(components["CreateExecution"]["properties"]) == {
        *(
            "command",
            "env",
            "workdir",
            "timeout_seconds",
            "stdin",
            "stderr",
            "tty",
            "on_output_limit",
            "output_mode",
            "limits",
            "id",
        )
    }
    assert components["NetworkRequest"]["properties"]["mode"]["enum"] == ["none", "direct", "proxy"]


def test_every_operation_on_files_says_which_path_and_no_answer_is_without_its_headers() -> None:
    on_files = [(p, m, o) for p, m, o in operations() if o["tags"] == ["files"]]
    assert len(on_files) == 8
    for path, method, operation in on_files:
        named = {(p["in"], p["name"]): p for p in operation["parameters"]}
        assert named["path", "sandbox_id"]["required"], (method, path)
        assert named["query", "path"]["required"], (method, path)
        assert "409" in operation["responses"]
    whole = DOCUMENT["paths"]["/sandboxes/{sandbox_id}/files"]["get"]["responses"]["200"]
    assert set(whole["headers"]) >= {"ETag", "Last-Modified", "File-Mode", "File-Type", "Content-Length"}


def test_open_paths_say_that_they_need_no_key() -> None:
    for path, _, operation in operations():
        is_open = path in {"/healthz", "/readyz", "/problems/{slug}"}
        assert (operation.get("security") == []) is is_open
        assert ("401" in operation["responses"]) is not is_open
