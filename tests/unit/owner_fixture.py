"""A VM owner around machines made of events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

import trio

from vmm.config.pci import PciSlot
from vmm.config.vm import VmConfig
from vmm.console.null import NullBackend
from vmm.errors import HostError, VmmError
from vmm.machine.bus import Lifecycle
from vmm.machine.commands import Command
from vmm.machine.consoles import Consoles
from vmm.machine.dirty import DirtyLog
from vmm.machine.hotplug import Added
from vmm.machine.interface import MachineSource
from vmm.machine.owner import VmOwner
from vmm.pci.bdf import Bdf
from vmm.snapshot.state import MachineState

CONFIG = VmConfig.model_validate({"payload": {"kernel": "/boot/vmlinuz"}})


class RecordedEvents:
    """An event sink that keeps the names."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def emit(self, source: str, event: str, properties: Mapping[str, str] | None = None) -> None:
        self.names.append(event)


class FakeMachine:
    """A machine whose inside is a nursery with one task that may be told to fail."""

    memory: Any = None
    memory_map: Any = None
    cpus: Any = None
    memory_actual_size = 512 << 20
    missing_bytes = 0
    ram_size = 512 << 20

    def __init__(self, lifecycle: Lifecycle) -> None:
        self.lifecycle = lifecycle
        self.calls: list[str] = []
        self.break_down = trio.Event()
        self.pause_hangs = False
        self.add_hangs = False
        self.add_error: VmmError | None = None
        self.remove_error: VmmError | None = None

    @property
    def device_tree(self) -> dict[str, dict[str, object]]:
        return {"__serial": {"id": "__serial", "resources": [], "children": []}}

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        return {}

    def described_in(self, config: VmConfig) -> VmConfig:
        return config

    def watch_ram(self) -> AbstractContextManager[DirtyLog]:
        raise NotImplementedError

    def release_locks(self) -> None:
        self.calls.append("release locks")

    def take_locks(self) -> None:
        self.calls.append("take locks")

    async def until_filled(self) -> None:
        raise NotImplementedError("no memory follows it")

    async def pause(self) -> None:
        self.calls.append("pause")
        if self.pause_hangs:
            await trio.sleep_forever()

    async def resume(self) -> None:
        self.calls.append("resume")

    def rest(self) -> None:
        self.calls.append("rest")

    def go_on(self) -> None:
        self.calls.append("go on")

    def save(self) -> MachineState:
        raise NotImplementedError("what is in it is nobody's business here")

    async def snapshot(self, folder: str, config: VmConfig) -> None:
        self.calls.append(f"snapshot to {folder}")
        if self.add_error is not None:
            raise self.add_error
        if self.add_hangs:
            await trio.sleep_forever()

    async def add_device(self, section: str, entry: PciSlot) -> Added:
        self.calls.append(f"add to {section}")
        if self.add_error is not None:
            raise self.add_error
        if self.add_hangs:
            await trio.sleep_forever()
        return Added(entry.model_copy(update={"id": entry.id or "_disk7"}), Bdf(1, 0, 5, 0))

    async def grow_ram(self, size: int) -> None:
        self.calls.append(f"grow by {size}")
        if self.add_error is not None:
            raise self.add_error
        if self.add_hangs:
            await trio.sleep_forever()

    def check_payload(self, config: VmConfig) -> None:
        self.calls.append(f"payload in {config.memory.size}")

    def resize_zone(self, zone: str, size: int) -> None:
        self.calls.append(f"zone {zone} by {size}")

    def resize_balloon(self, size: int) -> None:
        self.calls.append(f"balloon of {size}")

    def remove_device(self, id: str) -> str:
        self.calls.append(f"remove {id}")
        if self.remove_error is not None:
            raise self.remove_error
        return id.removeprefix("_virtio-pci-")

    async def resize_vcpus(self, count: int) -> None:
        self.calls.append(f"resize to {count} vCPUs")

    async def dump_core(self, path: str, *, is_running: bool) -> None:
        self.calls.append(f"dump to {path}{' while running' if is_running else ''}")
        if self.add_error is not None:
            raise self.add_error

    def resize_disk(self, name: str, size: int) -> None:
        self.calls.append(f"resize {name} to {size}")

    def press_power_button(self) -> None:
        self.calls.append("power button")

    def inject_nmi(self) -> None:
        self.calls.append("nmi")

    async def run(self) -> None:
        await self.break_down.wait()
        raise HostError("KVM_RUN", 14)


class Bench:
    """A running owner and the machines it has built."""

    def __init__(self, *, no_shutdown: bool = False) -> None:
        self.events = RecordedEvents()
        self.machines: list[FakeMachine] = []
        self.open_now = 0
        self.consoles_opened = 0
        self.consoles_now = 0
        self.boot_error: VmmError | None = None
        self.boot_hangs = False
        self.while_opening: Callable[[], object] = lambda: None
        self.owner = VmOwner(
            events=self.events,
            open_consoles=self._open_consoles,
            open_machine=self._open_machine,
            no_shutdown=no_shutdown,
        )
        self.ended = trio.Event()

    @property
    def machine(self) -> FakeMachine:
        return self.machines[-1]

    async def do(self, *commands: Command) -> None:
        for command in commands:
            await self.owner.submit(command)

    async def run(self) -> None:
        await self.owner.run()
        self.ended.set()

    @asynccontextmanager
    async def _open_consoles(self, config: VmConfig) -> AsyncIterator[Consoles]:
        self.consoles_opened += 1
        self.consoles_now += 1
        nothing = NullBackend()
        try:
            yield Consoles(serial=nothing, debug=nothing, firmware=nothing)
        finally:
            self.consoles_now -= 1

    @asynccontextmanager
    async def _open_machine(
        self,
        config: VmConfig,
        consoles: object,
        lifecycle: Lifecycle,
        *,
        source: MachineSource | None = None,
    ) -> AsyncIterator[FakeMachine]:
        self.while_opening()
        if self.boot_error is not None:
            raise self.boot_error
        if self.boot_hangs:
            await trio.sleep_forever()
        machine = FakeMachine(lifecycle)
        self.machines.append(machine)
        self.open_now += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(machine.run)
                yield machine
                nursery.cancel_scope.cancel()
        finally:
            self.open_now -= 1


@asynccontextmanager
async def running(*, no_shutdown: bool = False) -> AsyncIterator[Bench]:
    bench = Bench(no_shutdown=no_shutdown)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.run)
        yield bench
        nursery.cancel_scope.cancel()
    assert bench.open_now == 0
    assert bench.consoles_now == 0
