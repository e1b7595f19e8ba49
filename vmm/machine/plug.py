"""How one opened device is put on its bus: addresses, interrupts, doorbells, a slot, a task."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from vmm.kvm_cffi import Shadow
from vmm.machine.doorbells import Doorbells
from vmm.machine.iommu import BehindIommu
from vmm.machine.msi import MsixSources
from vmm.pci.bar import Bar, BarKind
from vmm.pci.configuration import BarMoved, Configuration
from vmm.virtio.device import VirtioDevice
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
    from vmm.machine.pci_bus import BarWindow, PciBus
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
    device: RegisterFunction, bus: PciBus, slot: int | None, saved: SavedDevice | None = None
) -> Iterator[Plugged]:
    """Put a function that only has registers on a bus. Raises: ConfigError (caller)."""
    bar = device.bar
    at = None if saved is None else saved.place.bar_address
    with ExitStack() as stack:
        window = stack.enter_context(bus.open_window(bar.kind, bar.size, bar.size, at=at))
        device.configuration.add_bar(bar, window.address)
        bdf = stack.enter_context(_slot(bus, _Registers(device, window), slot))
        window.serve(device)
        if saved is not None:
            from vmm.machine.device_state import load_registers  # Only now: most VMs never are.

            load_registers(device, window, saved)
        yield Plugged(device, bdf, partial(_register_nodes, device, window, bdf), window)


class _Registers:
    """The configuration space of a function whose one BAR follows the guest's wishes."""

    def __init__(self, device: RegisterFunction, window: BarWindow) -> None:
        self._device = device
        self._window = window

    @property
    def configuration(self) -> Configuration:
        return self._device.configuration

    def write_configuration(self, offset: int, size: int, value: int) -> None:
        for event in self._device.configuration.write(offset, size, value):
            if isinstance(event, BarMoved):
                self._window.move(event.new)


@contextmanager
def _slot(bus: PciBus, function: Function, slot: int | None) -> Iterator[Bdf]:
    bdf = bus.segment.add(function, slot)
    try:
        yield bdf
    finally:
        bus.segment.remove(bdf.device)


def _register_nodes(device: RegisterFunction, window: BarWindow, bdf: Bdf) -> tuple[Node]:
    return (
        {
            "id": device.id,
            "resources": [_resource(device.bar, window.address)],
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
            "prefetchable": False,
        }
    }
