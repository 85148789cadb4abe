"""The routes of the server: which there are, and what each one does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.boxlite.double import create, fields
from tests.boxlite.double.engine import Engine
from tests.boxlite.double.faults import Route
from tests.boxlite.double.http import Failure, Request, Response, Unframed, answer, json_body
from tests.boxlite.double.session import SIGNALS

CAPABILITIES = ("linux_capabilities", "snapshots", "clone", "export", "import")
ME = {
    "sub": "local-anonymous",
    "principal_type": "service_account",
    "email": "local@boxlite.local",
    "display_name": "Local development",
    "prefix": None,
    "scopes": [
        *("box:read", "box:write", "box:exec", "box:delete", "image:read", "image:write"),
        *("snapshot:read", "snapshot:write", "snapshot:delete", "me:read"),
    ],
    "expires_at": None,
}
Deed = Callable[[Engine, Request, list[str]], Awaitable[Response]]
DEEDS: dict[Route, Deed] = {}
NO_CONTENT = Response(204)
# In the order of the server's table, which is also the order in `allow`. `*` is one segment.
TABLE: list[tuple[str, dict[str, Route]]] = [
    ("v1/config", {"GET": Route.CONFIG}),
    ("v1/me", {"GET": Route.ME}),
    ("v1/metrics", {"GET": Route.METRICS}),
    ("v1/boxes", {"POST": Route.CREATE, "GET": Route.LIST}),
    ("v1/boxes/", {"GET": Route.LIST}),
    ("v1/boxes/*", {"GET": Route.GET, "HEAD": Route.HEAD, "DELETE": Route.DELETE}),
    ("v1/boxes/*/start", {"POST": Route.START}),
    ("v1/boxes/*/stop", {"POST": Route.STOP}),
    ("v1/boxes/*/exec", {"POST": Route.EXEC}),
    ("v1/boxes/*/attach", {"GET": Route.ATTACH_MAIN}),
    ("v1/boxes/*/metrics", {"GET": Route.BOX_METRICS}),
    ("v1/boxes/*/snapshots", {"GET": Route.SNAPSHOTS}),
    ("v1/boxes/*/files", {"PUT": Route.UPLOAD, "GET": Route.DOWNLOAD}),
    ("v1/boxes/*/network/outbound", {"PUT": Route.OUTBOUND}),
    ("v1/boxes/*/network/inbound", {"PUT": Route.INBOUND}),
    ("v1/boxes/*/ssh", {"GET": Route.SSH}),
    ("v1/boxes/*/executions/*", {"GET": Route.EXECUTION, "DELETE": Route.KILL}),
    ("v1/boxes/*/executions/*/signal", {"POST": Route.SIGNAL}),
    ("v1/boxes/*/executions/*/resize", {"POST": Route.RESIZE}),
    ("v1/boxes/*/executions/*/attach", {"GET": Route.ATTACH}),
    ("v1/images", {"GET": Route.IMAGES}),
    ("v1/images/usage", {"GET": Route.IMAGE_USAGE}),
    ("v1/images/*", {"GET": Route.IMAGE, "DELETE": Route.IMAGE}),
    ("v1/volumes", {"POST": Route.VOLUMES, "GET": Route.VOLUMES}),
    ("v1/volumes/*", {"GET": Route.VOLUMES, "DELETE": Route.VOLUMES}),
]


def find(request: Request) -> tuple[Route, list[str]]:
    """The route and its arguments; an unknown path is a 404 and a wrong method a 405, both without a body."""
    segments = request.segments
    for pattern, methods in TABLE:
        parts = pattern.split("/")
        if len(parts) != len(segments) or any(p not in {"*", s} for p, s in zip(parts, segments, strict=True)):
            continue
        if "*" in parts and "" in segments:
            continue
        if request.method not in methods:
            allow = ",".join(
                f"{method},HEAD" if method == "GET" and "HEAD" not in methods else method for method in methods
            )
            raise Unroutable(Response(405, headers=[("allow", allow)]))
        return methods[request.method], [s for p, s in zip(parts, segments, strict=True) if p == "*"]
    raise Unroutable(Response(404))


class Unroutable(Unframed):
    def __init__(self, response: Response) -> None:
        Exception.__init__(self, response.status)
        self.response = response


def does(route: Route) -> Callable[[Deed], Deed]:
    def register(deed: Deed) -> Deed:
        DEEDS[route] = deed
        return deed

    return register


@does(Route.CONFIG)
async def config(engine: Engine, request: Request, args: list[str]) -> Response:
    return answer({"capabilities": {f"{name}_enabled": True for name in CAPABILITIES}})


@does(Route.ME)
async def me(engine: Engine, request: Request, args: list[str]) -> Response:
    return answer(ME)


@does(Route.CREATE)
async def create_box(engine: Engine, request: Request, args: list[str]) -> Response:
    return answer(engine.create(create.options(request)).view(), 201)


@does(Route.LIST)
async def list_boxes(engine: Engine, request: Request, args: list[str]) -> Response:
    return answer({"boxes": [box.view() for box in engine.boxes]})


@does(Route.GET)
async def get_box(engine: Engine, request: Request, args: list[str]) -> Response:
    return answer(engine.box(args[0]).look())


@does(Route.HEAD)
async def head_box(engine: Engine, request: Request, args: list[str]) -> Response:
    return NO_CONTENT if engine.find(args[0]) else Response(404)


@does(Route.DELETE)
async def delete_box(engine: Engine, request: Request, args: list[str]) -> Response:
    force = request.query.get("force", "true")
    if force not in {"true", "false"}:
        raise Unframed(400, "Failed to deserialize query string: force: provided string was not `true` or `false`")
    await engine.delete(engine.box(args[0], "not found: "), force=force == "true")
    return NO_CONTENT


@does(Route.START)
async def start_box(engine: Engine, request: Request, args: list[str]) -> Response:
    box = engine.box(args[0])
    box.touch()
    await box.start()
    return answer(box.view())


@does(Route.STOP)
async def stop_box(engine: Engine, request: Request, args: list[str]) -> Response:
    box = engine.box(args[0])
    box.touch()
    engine.counters["stopped"] += box.running
    return answer(await box.stop())


@does(Route.EXEC)
async def exec_command(engine: Engine, request: Request, args: list[str]) -> Response:
    execution = await engine.exec(args[0], request)
    return answer({"execution_id": execution.id}, 201)


@does(Route.EXECUTION)
async def get_execution(engine: Engine, request: Request, args: list[str]) -> Response:
    execution = engine.execution(*args)
    if execution.exit_code is None:
        return answer({"execution_id": execution.id, "status": "running"})
    return answer({"execution_id": execution.id, "exit_code": execution.exit_code, "status": "completed"})


@does(Route.KILL)
async def kill_execution(engine: Engine, request: Request, args: list[str]) -> Response:
    await engine.kill(*args)
    return NO_CONTENT


@does(Route.SIGNAL)
async def signal_execution(engine: Engine, request: Request, args: list[str]) -> Response:
    number = fields.take(json_body(request), request.body, {"signal": fields.I32}, required=("signal",))["signal"]
    execution = engine.execution(*args)
    if number not in SIGNALS:
        text = f"signal {number} not allowed; use DELETE /executions/{{id}} for kill, cooperative signals are"
        raise Failure("invalid_argument", f"{text} {list(SIGNALS)}")
    await engine.signal(execution, number)
    return NO_CONTENT


@does(Route.RESIZE)
async def resize_execution(engine: Engine, request: Request, args: list[str]) -> Response:
    sizes: dict[str, fields.Check] = {"cols": fields.U32, "rows": fields.U32}
    size = fields.take(json_body(request), request.body, sizes, required=("cols", "rows"))
    execution = engine.execution(*args)
    if not execution.terminal:
        raise Failure("internal", "internal error: execution was not started with a PTY")
    for name, value in size.items():
        if value > 65_535:
            text = f"invalid argument: TTY {name} value {value} exceeds the kernel u16 limit"
            raise Failure("upstream_unavailable", f'gRPC/tonic error: status: InvalidArgument, message: "{text}"')
    execution.resize(size["cols"], size["rows"])
    return NO_CONTENT


@does(Route.IMAGES)
async def list_images(engine: Engine, request: Request, args: list[str]) -> Response:
    return answer({"images": []})


@does(Route.IMAGE)
async def get_image(engine: Engine, request: Request, args: list[str]) -> Response:
    raise Failure("not_found", f"not found: image {args[0]}")


def unsupported(text: str) -> Deed:
    async def refuse(engine: Engine, request: Request, args: list[str]) -> Response:
        raise Failure("unsupported", f"unsupported: {text}")

    return refuse


DEEDS[Route.IMAGE_USAGE] = unsupported("image usage counts a server's catalog against its limit")
DEEDS[Route.VOLUMES] = unsupported("named volumes are not supported yet")
