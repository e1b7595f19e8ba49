"""A virtio device behind its PCI transport, without a machine: a driver to set it up as Linux does.

    async with driven(Rng("rng", fd, "/dev/urandom")) as bench:
        [queue] = await bench.driver.start()
        queue.add(writable=[16])
        bench.driver.kick(0)
        await bench.interrupt(vector=1)
        [used] = queue.collect()

The queues are those in C. Vector 0 is the configuration's, queue n has vector n + 1.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import NamedTuple

import trio

from vmm.errors import InternalError
from vmm.kvm_cffi import Shadow, Virtqueue
from vmm.machine.iommu import BehindIommu
from vmm.machine.msi import MsixSources
from vmm.pci import msix
from vmm.pci.bar import BarKind
from vmm.pci.configuration import CAPABILITIES_POINTER
from vmm.pci.msix import ENABLE, ENTRY_SIZE, Message
from vmm.testing.driver import PackedDriver, SplitDriver
from vmm.testing.memory import FakeMemory
from vmm.virtio import spec
from vmm.virtio.device import VirtioDevice
from vmm.virtio.pci_transport import Surroundings, VirtioPci, shadowed
from vmm.virtio.queue import Queue, QueueState
from vmm.virtio.spec import NO_VECTOR, Common, Feature, PciCapability, Status

BAR_ADDRESS = 0xFF_FF80_0000
MSI_ADDRESS = 0xFEE0_0000
WAIT_S = 5.0

_WIDTHS = {
    Common.CONFIG_VECTOR: 2,
    Common.NUM_QUEUES: 2,
    Common.DEVICE_STATUS: 1,
    Common.CONFIG_GENERATION: 1,
    Common.QUEUE_SELECT: 2,
    Common.QUEUE_SIZE: 2,
    Common.QUEUE_VECTOR: 2,
    Common.QUEUE_ENABLE: 2,
    Common.QUEUE_NOTIFY_OFF: 2,
    Common.QUEUE_NOTIFY_DATA: 2,
    Common.QUEUE_RESET: 2,
}
"""Bytes of the fields that have not four."""


class RecordedEvents:
    """An event sink that keeps what it hears."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []

    def emit(self, source: str, event: str, properties: Mapping[str, str] | None = None) -> None:
        """Keep one event."""
        self.seen.append((source, event, dict(properties or {})))

    @property
    def names(self) -> list[str]:
        """The events without where they came from."""
        return [event for _, event, _ in self.seen]


class FakeWindow:
    """A BAR's window that keeps where it was moved to."""

    def __init__(self) -> None:
        self.moves: list[int | None] = []

    def move(self, address: int | None) -> None:
        """Be reachable at an address, or nowhere."""
        self.moves.append(address)


class FakeRoutes:
    """The interrupt routes of a machine, with nobody behind them."""

    def __init__(self) -> None:
        self.messages: dict[int, Message] = {}
        self.attached: dict[int, int] = {}
        self._gsis: set[int] = set()

    def allocate_gsi(self) -> int:
        """Take the lowest free GSI."""
        gsi = next(each for each in range(24, 4096) if each not in self._gsis)
        self._gsis.add(gsi)
        return gsi

    def free_gsi(self, gsi: int) -> None:
        """Give a GSI back."""
        assert gsi not in self.attached.values(), f"GSI {gsi} still has a source"
        self._gsis.remove(gsi)
        self.messages.pop(gsi, None)

    def set_messages(self, messages: Mapping[int, Message]) -> None:
        """Let GSIs stand for messages."""
        self.messages |= messages

    def attach(self, fd: int, gsi: int) -> None:
        """Let a descriptor raise a GSI; KVM refuses one that has no route yet or is taken."""
        assert gsi in self.messages
        assert fd not in self.attached
        self.attached[fd] = gsi

    def detach(self, fd: int, gsi: int) -> None:
        """Keep later events in their descriptor."""
        assert self.attached.pop(fd) == gsi


class Capability(NamedTuple):
    """A virtio capability as the driver reads it."""

    position: int
    kind: int
    bar: int
    offset: int
    length: int


class PciDriver:
    """The driver's side of the transport: configuration space and BAR 0, as a vCPU reaches them."""

    def __init__(self, transport: VirtioPci, memory: FakeMemory, shadow: Shadow) -> None:
        self.transport = transport
        self._shadow = shadow
        self.memory = memory
        self.features = 0

    def capabilities(self) -> list[tuple[int, int]]:
        """The ids and positions of the function's capabilities, in their order."""
        space = self.transport.configuration
        found = []
        at = space.read(CAPABILITIES_POINTER, 1)
        while at:
            found.append((space.read(at, 1), at))
            at = space.read(at + 1, 1)
        return found

    def capability(self, kind: PciCapability) -> Capability | None:
        """Find a virtio capability."""
        space = self.transport.configuration
        for id, at in self.capabilities():
            if id == spec.CAPABILITY_VENDOR and space.read(at + 3, 1) == kind:
                words = (space.read(at + 4, 1), space.read(at + 8, 4), space.read(at + 12, 4))
                return Capability(at, kind, *words)
        return None

    async def write(self, offset: int, size: int, value: int) -> None:
        """Write to BAR 0, and go on as a vCPU does: when the write has had its effect."""
        effect = self.transport.write(offset, size, value)
        if effect is not None:
            await effect.wait()

    def read(self, offset: int, size: int) -> int:
        """Read from BAR 0: in C as far as that answers."""
        value = self._shadow.read(offset, size)
        return self.transport.read(offset, size) if value is None else value

    def get(self, field: Common) -> int:
        """Read a field of the common configuration."""
        if field >= Common.QUEUE_DESC and field not in _WIDTHS:
            return self._read_common(field, 4) | self._read_common(field + 4, 4) << 32
        return self._read_common(field, _WIDTHS.get(field, 4))

    async def set(self, field: Common, value: int) -> None:
        """Write a field of the common configuration; 64-bit ones by halves, as Linux does."""
        at = self._structure(PciCapability.COMMON) + field
        if field >= Common.QUEUE_DESC and field not in _WIDTHS:
            await self.write(at, 4, value & 0xFFFF_FFFF)
            await self.write(at + 4, 4, value >> 32)
        else:
            await self.write(at, _WIDTHS.get(field, 4), value)

    @property
    def status(self) -> Status:
        """The device status."""
        return Status(self.get(Common.DEVICE_STATUS))

    async def add_status(self, bit: Status) -> Status:
        """Set one more status bit; what the status is then."""
        await self.set(Common.DEVICE_STATUS, self.status | bit)
        return self.status

    async def reset(self) -> None:
        """Reset the device."""
        await self.set(Common.DEVICE_STATUS, 0)

    async def offered(self) -> int:
        """Read the feature bits that the device offers."""
        await self.set(Common.DEVICE_FEATURE_SELECT, 0)
        low = self.get(Common.DEVICE_FEATURE)
        await self.set(Common.DEVICE_FEATURE_SELECT, 1)
        return low | self.get(Common.DEVICE_FEATURE) << 32

    async def accept(self, features: int) -> bool:
        """Accept feature bits; whether the device agrees."""
        for page in (0, 1):
            await self.set(Common.DRIVER_FEATURE_SELECT, page)
            await self.set(Common.DRIVER_FEATURE, features >> 32 * page & 0xFFFF_FFFF)
        self.features = features
        return bool(await self.add_status(Status.FEATURES_OK) & Status.FEATURES_OK)

    async def enable_msix(self) -> None:
        """Turn MSI-X on, with vector n as interrupt 0x40 + n."""
        vectors = self.get(Common.NUM_QUEUES) + 1
        [at] = [at for id, at in self.capabilities() if id == msix.CAPABILITY_ID]
        self.transport.write_configuration(at + 2, 2, ENABLE)
        table = self.transport.configuration.read(at + 4, 4) & ~7
        for vector in range(vectors):
            entry = table + ENTRY_SIZE * vector
            for offset, word in enumerate((MSI_ADDRESS, 0, 0x40 + vector, 0)):
                await self.write(entry + 4 * offset, 4, word)

    async def set_up_queue(self, state: QueueState, vector: int = NO_VECTOR) -> None:
        """Program one queue and enable it."""
        await self.set(Common.QUEUE_SELECT, state.index)
        await self.set(Common.QUEUE_SIZE, state.size)
        await self.set(Common.QUEUE_DESC, state.desc)
        await self.set(Common.QUEUE_DRIVER, state.driver)
        await self.set(Common.QUEUE_DEVICE, state.device)
        await self.set(Common.QUEUE_VECTOR, vector)
        await self.set(Common.QUEUE_ENABLE, 1)

    async def queue(self, index: int, size: int | None = None) -> SplitDriver | PackedDriver:
        """Make a queue in the format agreed on, as large as it may be, and set it up."""
        await self.set(Common.QUEUE_SELECT, index)
        size = size or self.get(Common.QUEUE_SIZE)
        kind = PackedDriver if self.features & Feature.RING_PACKED else SplitDriver
        queue = kind(
            self.memory,
            size,
            index=index,
            has_event_idx=bool(self.features & Feature.RING_EVENT_IDX),
            has_indirect=bool(self.features & Feature.RING_INDIRECT_DESC),
        )
        await self.set_up_queue(queue.state, index + 1)
        return queue

    async def start(
        self, features: int | None = None, size: int | None = None, *, is_packed: bool = False
    ) -> list[SplitDriver | PackedDriver]:
        """Bring the device up as Linux does; its queues, each of ``size`` entries.

        Without ``features`` all that the device offers are accepted, packed rings only if wanted.
        """
        await self.reset()
        await self.add_status(Status.ACKNOWLEDGE)
        await self.add_status(Status.DRIVER)
        if features is None:
            refused = 0 if is_packed else int(Feature.RING_PACKED)
            features = await self.offered() & ~refused
        if not await self.accept(features):
            raise InternalError(f"The device does not agree to the features {self.features:#x}")
        await self.enable_msix()
        await self.set(Common.CONFIG_VECTOR, 0)
        queues = [await self.queue(i, size) for i in range(self.get(Common.NUM_QUEUES))]
        await self.add_status(Status.DRIVER_OK)
        return queues

    async def reset_queue(self, index: int) -> None:
        """Take one queue back from the device."""
        await self.set(Common.QUEUE_SELECT, index)
        await self.set(Common.QUEUE_RESET, 1)
        if self.get(Common.QUEUE_RESET) or self.get(Common.QUEUE_ENABLE):
            raise InternalError(f"The device did not reset queue {index}")

    def kick(self, queue: int) -> None:
        """Ring a queue's doorbell."""
        self.transport.write(self._structure(PciCapability.NOTIFY) + 4 * queue, 2, queue)

    def read_config(self, offset: int, size: int) -> int:
        """Read the device's own configuration."""
        return self.read(self._structure(PciCapability.DEVICE) + offset, size)

    async def write_config(self, offset: int, size: int, value: int) -> None:
        """Write the device's own configuration."""
        await self.write(self._structure(PciCapability.DEVICE) + offset, size, value)

    def _read_common(self, offset: int, size: int) -> int:
        return self.read(self._structure(PciCapability.COMMON) + offset, size)

    def _structure(self, kind: PciCapability) -> int:
        found = self.capability(kind)
        if found is None:
            raise InternalError(f"The device has no {kind.name} structure")
        return found.offset


class Bench:
    """A device, its transport and its driver, and all they touch."""

    def __init__(
        self,
        device: VirtioDevice,
        memory: FakeMemory,
        stack: ExitStack,
        behind: BehindIommu | None = None,
    ) -> None:
        queues = len(device.queue_sizes)
        self.device = device
        self.memory = memory
        self.events = RecordedEvents()
        self.window = FakeWindow()
        self.routes = FakeRoutes()
        self.sources = stack.enter_context(MsixSources(self.routes, queues + 1))
        self.kicks = _eventfds(queues, stack)
        self._map = memory.map()
        self._endpoint = None if behind is None else behind.endpoint
        shadow = Shadow(shadowed(device))
        around = Surroundings(
            memory=memory,
            open_queue=self._open_queue,
            kicks=self.kicks,
            shadow=shadow.views,
            sources=self.sources,
            window=self.window,
            events=self.events,
            report_fault=None if behind is None else behind.report_fault,
        )
        self.transport = VirtioPci(device, around, BarKind.MEMORY64, BAR_ADDRESS)
        self.driver = PciDriver(self.transport, memory, shadow)

    async def interrupt(self, vector: int) -> None:
        """Wait for an interrupt by a vector. Raises: trio.TooSlowError when none comes."""
        gsi = next(gsi for gsi, each in self.routes.messages.items() if each.data == 0x40 + vector)
        fds = [fd for fd, led_to in self.routes.attached.items() if led_to == gsi]
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                for fd in fds:
                    nursery.start_soon(_wait_and_cancel, fd, nursery.cancel_scope)
                nursery.start_soon(trio.sleep_forever)
        for fd in fds:
            with suppress(BlockingIOError):
                os.eventfd_read(fd)

    def _open_queue(self, state: QueueState, *, kick_fd: int, interrupt_fd: int) -> Queue:
        fds = {"kick_fd": kick_fd, "interrupt_fd": interrupt_fd}
        return Virtqueue(self._map, state, **fds, endpoint=self._endpoint)


@asynccontextmanager
async def driven(
    device: VirtioDevice, memory: FakeMemory | None = None, behind: BehindIommu | None = None
) -> AsyncIterator[Bench]:
    """Put a device behind a transport, and maybe the IOMMU, and run it; leaving ends it."""
    with ExitStack() as stack:
        bench = Bench(device, memory or FakeMemory((0, 8 << 20)), stack, behind)
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.transport.runner.run)
            yield bench
            nursery.cancel_scope.cancel()


async def _wait_and_cancel(fd: int, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(fd)
    scope.cancel()


def _eventfds(count: int, stack: ExitStack) -> Sequence[int]:
    fds = tuple(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(count))
    for fd in fds:
        stack.callback(os.close, fd)
    return fds
