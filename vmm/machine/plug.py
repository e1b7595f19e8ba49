"""How one opened device is put on its bus: addresses, interrupts, doorbells, a slot, a task."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from vmm.errors import ConfigError
from vmm.kvm_cffi import Shadow
from vmm.machine.doorbells import Doorbells
from vmm.machine.iommu import BehindIommu
from vmm.machine.msi import MsixSources
from vmm.pci.bar import Bar, BarKind
from vmm.pci.configuration import BarMoved, Configuration
from vmm.virtio.device import VirtioDevice
from vmm.virtio.pci_identity import BAR_INDEX
from vmm.virtio.pci_transport import (
    BAR_ALIGNMENT,
    BAR_SIZE,
    NOTIFY,
    NOTIFY_STRIDE,
    Surroundings,
    VirtioPci,
    shadowed,
)

if TYPE_CHECKING:
    from vmm.kvm_cffi import Vm
    from vmm.machine.interrupts import Interrupts
    from vmm.machine.pci_bus import BarWindow, Movable, PciBus
    from vmm.machine.sections import Board, RegisterFunction
    from vmm.pci.bdf import Bdf
    from vmm.pci.segment import Function
    from vmm.snapshot.state import SavedDevice
    from vmm.virtio.iommu import Iommu

_BAR_NAMES = {BarKind.IO: "Io", BarKind.MEMORY32: "Mmio32", BarKind.MEMORY64: "Mmio64"}

Node = dict[str, object]
"""A device in the tree of vm.info."""


class Wiring(NamedTuple):
    """What of the machine every device is connected to."""

    vm: Vm
    interrupts: Interrupts
    buses: Sequence[PciBus]
    board: Board


class Plugged(NamedTuple):
    """A device on its bus; ``describe`` gives its part of the device tree."""

    device: VirtioDevice | RegisterFunction
    bdf: Bdf
    describe: Callable[[], tuple[Node, ...]]
    window: BarWindow
    transport: VirtioPci | None = None
    is_translated: bool = False
    memory_window: BarWindow | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its part of the device tree as it is now."""
        return self.describe()

    @property
    def counters(self) -> dict[str, int]:
        """What it counts."""
        return self.device.counters if isinstance(self.device, VirtioDevice) else {}

    @property
    def ram_bytes(self) -> int:
        """What it adds to the guest's RAM; what it takes away is negative."""
        return self.device.ram_bytes if isinstance(self.device, VirtioDevice) else 0


@asynccontextmanager
async def plug_virtio(
    device: VirtioDevice,
    wiring: Wiring,
    bus: PciBus,
    slot: int | None,
    kind: BarKind,
    iommu: Iommu | None = None,
    saved: SavedDevice | None = None,
) -> AsyncIterator[Plugged]:
    """Put a virtio device on a bus, maybe behind the IOMMU, and run it.

    One that was ``saved`` is there asleep, as it was.

    Raises: ConfigError (caller), HostError.
    """
    queues = len(device.queue_sizes)
    with ExitStack() as stack:
        doorbells = Doorbells(wiring.vm, queues, offset=NOTIFY, stride=NOTIFY_STRIDE)
        stack.enter_context(doorbells)
        sources = stack.enter_context(MsixSources(wiring.interrupts, queues + 1))
        at = None if saved is None else saved.place.bar_address
        _check_place(Bar(BAR_INDEX, kind, BAR_SIZE), device.id, at)
        window = stack.enter_context(
            bus.open_window(kind, BAR_SIZE, BAR_ALIGNMENT, doorbells, at=at)
        )
        shadow = Shadow(shadowed(device))
        behind = None if iommu is None else BehindIommu(iommu)
        around = Surroundings(
            memory=wiring.board.memory,
            open_queue=partial(
                wiring.board.open_queue, endpoint=None if behind is None else behind.endpoint
            ),
            kicks=doorbells.fds,
            shadow=shadow.views,
            sources=sources,
            window=window,
            events=wiring.board.events,
            report_fault=None if behind is None else behind.report_fault,
        )
        transport = VirtioPci(device, around, kind, window.address)
        bdf = stack.enter_context(_slot(bus, transport, slot))
        if behind is not None:
            stack.enter_context(behind.joined(bdf))
        window.serve(transport, shadow)
        if saved is not None:
            from vmm.machine.device_state import load_virtio  # Only now: most VMs never are.

            load_virtio(transport, saved)
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.runner.run)
            describe = partial(_virtio_nodes, device, transport.bar, window, bdf)
            yield Plugged(device, bdf, describe, window, transport, behind is not None)
            nursery.cancel_scope.cancel()


@contextmanager
def plug_registers(
    device: RegisterFunction,
    wiring: Wiring,
    bus: PciBus,
    slot: int | None,
    saved: SavedDevice | None = None,
) -> Iterator[Plugged]:
    """Put a function that has registers, and maybe memory, on a bus.

    Raises: ConfigError (caller), HostError.
    """
    place = None if saved is None else saved.place
    with ExitStack() as stack:
        at = None if place is None else place.bar_address
        window = stack.enter_context(_window(bus, device, device.bar, at))
        windows = {device.bar: window}
        memory_window = memory = None
        if device.memory is not None:
            bar = device.memory.bar
            memory = stack.enter_context(wiring.board.device_memory.following(device.memory.memory))
            at = None if place is None else place.memory_address
            memory_window = stack.enter_context(_window(bus, device, bar, at, memory))
            windows[bar] = memory_window
        bdf = stack.enter_context(_slot(bus, _Registers(device, windows), slot))
        window.serve(device)
        if memory_window is not None and memory is not None:
            memory_window.serve(memory)
        if saved is not None:
            from vmm.machine.device_state import load_registers  # Only now: most VMs never are.

            load_registers(device, windows, saved)
        describe = partial(_register_nodes, device, windows, bdf)
        yield Plugged(device, bdf, describe, window, memory_window=memory_window)


def _window(
    bus: PciBus,
    device: RegisterFunction,
    bar: Bar,
    at: int | None,
    follower: Movable | None = None,
) -> BarWindow:
    """Place a BAR, ``at`` an address that a guest is said to have it at."""
    _check_place(bar, device.id, at)
    window = bus.open_window(bar.kind, bar.size, bar.size, follower, at=at)
    device.configuration.add_bar(bar, window.address)
    return window


def _check_place(bar: Bar, id: str, at: int | None) -> None:
    if at is not None and at & ~bar.writable:
        raise ConfigError(
            f"The saved BAR {bar.index} ({bar.kind.name}) of {id} is at {at:#x}, where "
            f"{bar.size:#x} bytes cannot lie; the file is not whole"
        )


class _Registers:
    """The configuration space of a function whose BARs follow the guest's wishes."""

    def __init__(self, device: RegisterFunction, windows: Mapping[Bar, BarWindow]) -> None:
        self._device = device
        self._windows = {bar.index: window for bar, window in windows.items()}

    @property
    def configuration(self) -> Configuration:
        return self._device.configuration

    def write_configuration(self, offset: int, size: int, value: int) -> None:
        for event in self._device.configuration.write(offset, size, value):
            if isinstance(event, BarMoved):
                self._windows[event.bar].move(event.new)


@contextmanager
def _slot(bus: PciBus, function: Function, slot: int | None) -> Iterator[Bdf]:
    bdf = bus.segment.add(function, slot)
    try:
        yield bdf
    finally:
        bus.segment.remove(bdf.device)


def _register_nodes(
    device: RegisterFunction, windows: Mapping[Bar, BarWindow], bdf: Bdf
) -> tuple[Node]:
    return (
        {
            "id": device.id,
            "resources": [_resource(bar, window.address) for bar, window in windows.items()],
            "children": [],
            "pci_bdf": str(bdf),
        },
    )


def _virtio_nodes(device: VirtioDevice, bar: Bar, window: BarWindow, bdf: Bdf) -> tuple[Node, Node]:
    """The device, and the transport it hangs on."""
    id, resources = device.id, list(device.resources)
    transport = f"_virtio-pci-{id}"
    return (
        {"id": id, "resources": resources, "parent": transport, "children": []},
        {
            "id": transport,
            "resources": [_resource(bar, window.address)],
            "children": [id],
            "pci_bdf": str(bdf),
        },
    )


def _resource(bar: Bar, base: int) -> Node:
    return {
        "PciBar": {
            "index": bar.index,
            "base": base,
            "size": bar.size,
            "type_": _BAR_NAMES[bar.kind],
            "prefetchable": bar.is_prefetchable,
        }
    }
