"""Runtime `boxlite`: creates boxes on a BoxLite server, removes them, and knows whether the server is there.

A box is named `bh-<instance>-<sandbox id>`. A box with the name of this instance that belongs to no current sandbox is
removed whenever it is seen. It may be left from an earlier life of the service, made by a request whose answer was
lost, or one that could not be removed before. Boxes of others are never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from functools import cached_property

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.box import Box
from app.backends.boxlite.client import BoxliteClient
from app.backends.boxlite.egress import BoxEgress, ProxyCredential
from app.backends.boxlite.health_check import HealthCheck
from app.backends.boxlite.images import Images
from app.backends.boxlite.inside import MAIN_COMMAND, WORKSPACE, BoxMeasurements
from app.backends.boxlite.limits import COMMAND_LIMITS, GIB, MOST_CPUS, whole
from app.backends.boxlite.network import NOBODY_PERMITTED, check_rules, narrowed, server_network
from app.backends.boxlite.receipt import check, isolation
from app.backends.boxlite.sandbox import BoxliteSandbox
from app.backends.boxlite.server import BoxliteServer, is_name_taken, is_slow_boot
from app.backends.boxlite.timeouts import ServerTimeouts
from app.core.backend import RuntimeInfo, settle
from app.core.capabilities import Capability
from app.core.errors import (
    BackendFailure,
    BackendRefused,
    BackendUnavailable,
    CapabilityMissing,
    LaunchFailed,
)
from app.core.limits import MIB
from app.core.models import SandboxSpec, Tier
from app.core.tasks import Tasks
from app.core.workdirs import prepare_workdir
from app.settings.boxlite import BoxliteSettings

# The wrapper's, so not in every image.
WRAPPED = frozenset({Capability.EXACT_OUTPUT, Capability.MERGED_OUTPUT, Capability.EXECUTION_RLIMITS})
CAPABILITIES = frozenset(
    {
        Capability.STDIN,
        Capability.SIGNALS,
        Capability.SIGNAL_GROUP,
        Capability.PTY,
        Capability.LIMIT_CPUS,
        Capability.LIMIT_MEMORY,
        Capability.LIMIT_DISK,
        Capability.STORAGE_DISK,
        Capability.IMAGES,
        Capability.FILES,
        *WRAPPED,
    }
)
NO_EGRESS = "this service has no egress process"
IMAGES_KNOWN = 1024  # of which it is known whether output can be exact; clients may name any that match a pattern
REMOVALS = 16  # of leftovers, at one time: a server that lists 20,000 as ours must not cost us 20,000 requests


def _check_exact(spec: SandboxSpec, inexact: str) -> None:
    """Raises CapabilityMissing."""
    if inexact and (missing := WRAPPED & spec.requires):
        detail = f"output cannot be exact in the image {spec.image!r}: it {inexact}"
        raise CapabilityMissing(missing, RUNTIME, detail)


class BoxliteBackend:
    """`instance` is a random word of this installation, which stays the same after a restart. Without `egress` no box
    can have a network of the mode `proxy`, and `no_proxy` says why."""

    def __init__(
        self,
        settings: BoxliteSettings,
        instance: str,
        timeouts: ServerTimeouts | None = None,
        egress: BoxEgress | None = None,
        no_proxy: str = NO_EGRESS,
    ) -> None:
        self._settings, self._egress, self._no_proxy = settings, egress, no_proxy
        key = settings.api_key.get_secret_value() if settings.api_key is not None else None
        self._client = BoxliteClient(settings.url or "http://127.0.0.1:8100", key, timeouts)
        self._server = BoxliteServer(self._client, settings.path_prefix)
        self._health_check = HealthCheck(self._server, self._on_boxes, self._on_silence)
        self._images = Images(settings.images, settings.default_image, settings.image_patterns)
        if settings.default_image is not None:
            self._images.chosen(None)
        self._prefix = f"bh-{instance}-"
        self._boots = asyncio.Semaphore(settings.boots)
        self._tasks = Tasks()
        self._names: set[str] = set()  # of this life, from before the create to after the end
        self._sandboxes: dict[str, BoxliteSandbox] = {}
        self._removing: dict[str, asyncio.Task[None]] = {}
        self._inexact: dict[str, str] = {}  # by image: why output cannot be exact; empty: it can

    @cached_property
    def info(self) -> RuntimeInfo:
        direct = {Capability.NETWORK_DIRECT} if self._settings.direct_allow else set()
        proxy = {Capability.NETWORK_PROXY} if self._egress is not None else set()
        return RuntimeInfo(
            RUNTIME,
            Tier.VM,
            "v1",
            CAPABILITIES | direct | proxy,
            aliases=("vm", "microvm"),
            command_limits=COMMAND_LIMITS,
            ceilings={"cpus": MOST_CPUS},
            no_direct=f"has no network of the mode direct: {NOBODY_PERMITTED}",
            no_proxy=f"has no network of the mode proxy: {self._no_proxy}",
        )

    def open(self) -> None:
        self._health_check.open()

    async def ready(self) -> None:
        await self._health_check.check()

    def fit(self, spec: SandboxSpec) -> SandboxSpec:
        network = spec.policy.network
        if network.mode == "proxy":
            check_rules(network.rules)
        if network.mode == "direct":
            network = replace(network, allow=narrowed(network.allow, self._settings.direct_allow))
        image = self._images.chosen(spec.image)
        _check_exact(spec, self._inexact.get(image, ""))
        return replace(spec, limits=whole(spec.limits), policy=replace(spec.policy, network=network), image=image)

    # --- create

    async def create(self, sandbox_id: str, spec: SandboxSpec) -> BoxliteSandbox:
        await self._health_check.check()
        await self._boots.acquire()  # whoever gives up while he waits has begun nothing
        boot = asyncio.get_running_loop().create_task(self._boot_when_there(sandbox_id, spec))
        try:
            return await asyncio.shield(boot)
        except asyncio.CancelledError:
            # To disconnect from a boot breaks the box: it is waited for, and then undone.
            await settle(asyncio.get_running_loop().create_task(self._undo(self._prefix + sandbox_id, boot)))
            raise

    async def _undo(self, name: str, boot: asyncio.Task[BoxliteSandbox]) -> None:
        await asyncio.wait([boot])
        if boot.cancelled() or boot.exception() is not None:
            return
        try:
            await boot.result().destroy()
        except BackendFailure as error:  # then it is removed when it is next seen
            self._health_check.note(error)
            self._forget(name)

    async def _boot_when_there(self, sandbox_id: str, spec: SandboxSpec) -> BoxliteSandbox:
        name = self._prefix + sandbox_id
        self._names.add(name)
        turn = contextlib.ExitStack()
        turn.callback(self._boots.release)
        try:
            with turn:
                await self._health_check.check()
                return await self._boot(sandbox_id, name, spec, turn)
        except BaseException as error:
            self._names.discard(name)
            if isinstance(error, BackendFailure):
                self._health_check.note(error)
            raise

    async def _boot(self, sandbox_id: str, name: str, spec: SandboxSpec, turn: contextlib.ExitStack) -> BoxliteSandbox:
        credential = self._credential_for(sandbox_id, spec)
        box = await self._made(name, spec, credential)
        sandbox = BoxliteSandbox(
            self._server,
            self._health_check,
            self._tasks,
            sandbox_id,
            box.id,
            self._settings.stdin_mib * MIB,
            lambda: self._forget(name),
            spec.limits.disk_mib * MIB,
        )
        try:
            began = time.perf_counter()
            started = await self._started(box.id)
            boot_seconds = time.perf_counter() - began
            if self._egress is not None and credential is not None:
                await sandbox.open_network(self._egress, credential, spec.policy.network.rules, spec.client)
            turn.close()  # an image that keeps us waiting from here on keeps nobody else
            facts = await self._proved(sandbox, spec)
            check(facts, spec)
            if self._egress is not None and credential is not None:
                await self._egress.prove(started, sandbox.inside, credential)
            await prepare_workdir(sandbox.files, spec.workdir)
            inexact = self._learn(str(spec.image), facts)
            _check_exact(spec, inexact)
        except BaseException:
            with contextlib.suppress(BackendFailure):  # then it is removed when it is next seen
                await self._server.remove(box.id)
            await sandbox.close_network()
            raise
        sandbox.prove(isolation(started, spec, facts, boot_seconds, inexact), inexact)
        self._sandboxes[name] = sandbox
        return sandbox

    def _credential_for(self, sandbox_id: str, spec: SandboxSpec) -> ProxyCredential | None:
        if spec.policy.network.mode != "proxy":
            return None
        if self._egress is None:
            raise BackendUnavailable(RUNTIME, self._no_proxy, 60)
        return self._egress.credential(sandbox_id)

    async def _made(self, name: str, spec: SandboxSpec, credential: ProxyCredential | None) -> Box:
        """Environment and working directory of a sandbox are not the box's: they are part of every command."""
        body = {
            "name": name,
            **self._images.fields(str(spec.image)),
            "cpus": int(spec.limits.cpus),
            "memory_mib": spec.limits.memory_mib,
            "disk_size_gb": spec.limits.disk_mib // GIB,
            "network": server_network(spec.policy.network, credential.host if credential is not None else None),
            "detach": True,
            "cmd": MAIN_COMMAND,
            "auto_stop": 0,
            "auto_delete": 0,
        }
        try:
            return await self._server.create(body)
        except BackendFailure as error:
            if not is_name_taken(error):
                raise
        old = await self._server.find_called(name)  # of an earlier life, and not removed yet
        if old is not None:
            await self._remove(old.id)
        return await self._server.create(body)

    async def _started(self, box_id: str) -> Box:
        try:
            return await self._server.start(box_id, self._settings.boot_seconds)
        except BackendFailure as error:
            if not is_slow_boot(error):
                raise
        return await self._server.start(box_id, self._settings.boot_seconds)

    async def _proved(self, sandbox: BoxliteSandbox, spec: SandboxSpec) -> BoxMeasurements:
        needed = spec.workdir == WORKSPACE  # an image whose user may not make it can be used with another workdir
        probe = spec.image not in self._inexact
        try:
            return await sandbox.inside.prove(needs_workspace=needed, probe=probe)
        except PermissionError as error:
            detail = f"the image's user cannot make {WORKSPACE} ({error}); create with a workdir that the image has"
            raise LaunchFailed("workspace", "EACCES", detail) from error
        except BackendRefused:
            raise
        except BackendUnavailable:  # a guest that has just answered may still drop its first call
            await asyncio.sleep(0.2)
            return await sandbox.inside.prove(needs_workspace=needed, probe=probe)

    def _learn(self, image: str, facts: BoxMeasurements) -> str:
        """Why output cannot be exact in boxes of this image; found out by the first one."""
        if facts.inexact is not None:
            while len(self._inexact) >= IMAGES_KNOWN:
                del self._inexact[next(iter(self._inexact))]
            self._inexact[image] = facts.inexact
        return self._inexact.get(image, "was not asked whether it can")

    # --- endings

    def _forget(self, name: str) -> None:
        self._names.discard(name)
        self._sandboxes.pop(name, None)

    def _on_boxes(self, asked_at: float, boxes: list[Box]) -> None:
        by_id = {box.id: box for box in boxes}
        for sandbox in tuple(self._sandboxes.values()):
            box = by_id.get(sandbox.box_id)
            if sandbox.since < asked_at and (box is None or box.over):
                sandbox.lose("its box is gone" if box is None else f"its box is {box.status}")
        for box in boxes:
            if len(self._removing) >= REMOVALS:
                break  # the others when they are seen again
            if box.name is not None and box.name.startswith(self._prefix) and box.name not in self._names:
                self._remove(box.id)

    def _remove(self, box_id: str) -> asyncio.Task[None]:
        """One attempt at a time; those of the health check are made again at its next beat."""
        if box_id not in self._removing:
            task = asyncio.get_running_loop().create_task(self._server.remove(box_id))
            self._removing[box_id] = task
            task.add_done_callback(lambda _: self._removing.pop(box_id, None))
            task.add_done_callback(self._removed)
        return self._removing[box_id]

    def _removed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and isinstance(error := task.exception(), BackendFailure):
            self._health_check.note(error)

    def _on_silence(self, seconds: float, error: BackendFailure) -> None:
        if seconds > self._settings.grace_seconds:
            for sandbox in tuple(self._sandboxes.values()):
                sandbox.lose(f"the BoxLite server has not worked for {seconds:.0f} seconds: {error}")

    async def aclose(self) -> None:
        """Boxes that cannot be removed now are removed after the next start of this instance."""
        sandboxes = tuple(self._sandboxes.values())
        await asyncio.gather(*(sandbox.destroy() for sandbox in sandboxes), return_exceptions=True)
        await self._health_check.aclose()
        for task in tuple(self._removing.values()):
            await settle(task)
        await self._tasks.aclose()
        await self._client.aclose()
        await self._server.sockets.aclose()
