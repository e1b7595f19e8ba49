"""The modern virtio-pci transport: one PCI function in front of a virtio device.

BAR 0 holds everything: common configuration, ISR status, the device's own configuration, doorbells
and the MSI-X table. A doorbell is normally an ioeventfd that never gets here, and reads of the
common configuration and of the MSI-X table come out of the memory in which they are kept. There is
no interrupt pin: without MSI-X a driver has to poll.

Spec: Virtio 1.2, section 4.1.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vmm.errors import GuestError, VmmError
from vmm.pci import msix
from vmm.pci.bar import Bar, BarKind
from vmm.pci.configuration import BarMoved, CapabilityWritten, Configuration
from vmm.pci.msix import Msix
from vmm.virtio import spec
from vmm.virtio.common_config import (
    CommonConfig,
    QueueEnabled,
    QueueReset,
    StatusWritten,
    VectorChosen,
)
from vmm.virtio.device import Active, offered_features
from vmm.virtio.pci_identity import BAR_INDEX, capability, identity_of
from vmm.virtio.runner import DeviceRunner
from vmm.virtio.spec import Isr, PciCapability, Status
from vmm.virtio.status import Negotiation, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    import trio

    from vmm.pci.msix import VectorChanged
    from vmm.pci.saved import SavedConfiguration, SavedMsix
    from vmm.virtio.device import Memory, VirtioDevice
    from vmm.virtio.queue import Queue, QueueState
    from vmm.virtio.saved import SavedQueue, SavedTransport

logger = logging.getLogger(__name__)

BAR_SIZE = 0x80000
BAR_ALIGNMENT = 8 << 20

COMMON = 0x0000
ISR = 0x2000
DEVICE = 0x4000
NOTIFY = 0x6000
MSIX_TABLE = 0x8000
MSIX_PBA = 0x48000

ISR_SIZE = 1
DEVICE_SIZE = 0x1000
NOTIFY_SIZE = 0x1000
NOTIFY_STRIDE = 4
MAX_QUEUES = NOTIFY_SIZE // NOTIFY_STRIDE

# Where the fields of the capability for access through configuration space are, section 4.1.4.9.
_CFG_BAR, _CFG_OFFSET, _CFG_LENGTH, _CFG_DATA, _CFG_END = 4, 8, 12, 16, 20
_CFG_WRITABLE = bytes((0, 0, 0xFF, 0, 0, 0)) + b"\xff" * 12


class Sources(Protocol):
    """Where interrupts go: one source a queue, and the last for the configuration."""

    @property
    def fds(self) -> Sequence[int]: ...
    def signal(self, source: int) -> None: ...
    def lead(self, source: int, vector: int | None) -> None: ...
    def apply(self, changes: Iterable[VectorChanged]) -> None: ...
    def is_pending(self, vector: int) -> bool: ...


class Window(Protocol):
    """BAR 0 in the guest's address space, doorbells included."""

    def move(self, address: int | None) -> None:
        """Be reachable at an address, or nowhere."""


class Events(Protocol):
    """Who is told of what happened."""

    def emit(
        self, source: str, event: str, properties: Mapping[str, str] | None = None
    ) -> None: ...


class OpenQueue(Protocol):
    """Makes the device's side of a queue. Raises: GuestError when it cannot be one."""

    def __call__(self, state: QueueState, *, kick_fd: int, interrupt_fd: int) -> Queue: ...


class Surroundings(NamedTuple):
    """What the transport is given of the machine.

    ``kicks`` has an eventfd a queue, ``shadow`` the memory of each part that ``shadowed`` names.
    A device behind the IOMMU has ``report_fault``, which tells that of an access it refused.
    """

    memory: Memory
    open_queue: OpenQueue
    kicks: Sequence[int]
    shadow: Sequence[memoryview]
    sources: Sources
    window: Window
    events: Events
    report_fault: Callable[[], None] | None = None


def shadowed(device: VirtioDevice) -> tuple[tuple[int, int], ...]:
    """Say which parts of a device's BAR 0 may be read out of memory: offset and size of each."""
    vectors = len(device.queue_sizes) + 1
    table = vectors * msix.ENTRY_SIZE
    return (COMMON, spec.COMMON_CONFIG_SIZE_WITH_RESET), (MSIX_TABLE, table)


class VirtioPci:
    """A virtio device's PCI function and the IoHandler of its BAR 0."""

    def __init__(
        self, device: VirtioDevice, around: Surroundings, kind: BarKind, address: int
    ) -> None:
        self.device = device
        self.bar = Bar(BAR_INDEX, kind, BAR_SIZE)
        self.runner = DeviceRunner(device, self)
        self._around = around
        self._negotiation = Negotiation(
            offered_features(device, is_translated=around.report_fault is not None)
        )
        queues = len(device.queue_sizes)
        self._config_source = queues
        image, table = around.shadow
        self._msix = Msix(queues + 1, table)
        self._common = CommonConfig(self._negotiation, device.queue_sizes, queues + 1, image)
        self._isr = Isr(0)
        self._active: Active | None = None
        self.configuration = Configuration(identity_of(device))
        self.configuration.add_bar(self.bar, address)
        self._cfg_at = self._add_capabilities()
        device.attach(self.config_changed)

    # Configuration space

    def write_configuration(self, offset: int, size: int, value: int) -> None:
        """Take a guest's write to one register of four bytes."""
        for event in self.configuration.write(offset, size, value):
            match event:
                case BarMoved(_, _, new):
                    self._around.window.move(new)
                case CapabilityWritten(msix.CAPABILITY_ID, position):
                    control = self.configuration.read(position + 2, 2)
                    self._around.sources.apply(self._msix.write_control(control))
                case CapabilityWritten(_, self._cfg_at):
                    self._access_by_configuration(offset - self._cfg_at)

    def _access_by_configuration(self, written: int) -> None:
        """Do the access that the guest describes in configuration space.

        Reading configuration space reaches nobody, so what the described bytes hold is put there as
        soon as they are described.
        """
        space, at = self.configuration, self._cfg_at
        offset, length = space.read(at + _CFG_OFFSET, 4), space.read(at + _CFG_LENGTH, 4)
        is_possible = length in (1, 2, 4) and offset % length == 0 and offset + length <= BAR_SIZE
        if space.read(at + _CFG_BAR, 1) != BAR_INDEX or not is_possible:
            return
        if _CFG_DATA <= written < _CFG_END:
            self.write(offset, length, space.read(at + _CFG_DATA, length))
        else:
            value = self._isr if offset == ISR else self.read(offset, length)
            space.set(at + _CFG_DATA, value.to_bytes(4, "little"))

    def _add_capabilities(self) -> int:
        """Add what points a driver to the parts of BAR 0; the place of the last virtio one."""
        config_size = len(self.device.read_config(0, DEVICE_SIZE))
        add, body = self.configuration.add_capability, capability
        add(spec.CAPABILITY_VENDOR, body(PciCapability.COMMON, COMMON, self._common.size))
        add(spec.CAPABILITY_VENDOR, body(PciCapability.ISR, ISR, ISR_SIZE))
        if config_size:
            add(spec.CAPABILITY_VENDOR, body(PciCapability.DEVICE, DEVICE, config_size))
        stride = struct.pack("<I", NOTIFY_STRIDE)
        add(spec.CAPABILITY_VENDOR, body(PciCapability.NOTIFY, NOTIFY, NOTIFY_SIZE, stride))
        cfg = body(PciCapability.PCI, 0, 0, bytes(4))
        position = add(spec.CAPABILITY_VENDOR, cfg, _CFG_WRITABLE)
        add(msix.CAPABILITY_ID, *self._msix.capability(BAR_INDEX, MSIX_TABLE, MSIX_PBA))
        return position

    # BAR 0

    def read(self, offset: int, size: int) -> int:
        """Read a register; zero where there is none."""
        if offset < ISR:
            return self._common.read(offset - COMMON, size)
        if offset < DEVICE:
            return self._take_isr() if offset == ISR else 0
        if offset < NOTIFY:
            return self._read_device(offset - DEVICE, size)
        if offset < MSIX_TABLE:
            return 0
        if offset < MSIX_PBA:
            return self._msix.read_table(offset - MSIX_TABLE, size)
        return self._msix.read_pba(offset - MSIX_PBA, size, self._around.sources.is_pending)

    def write(self, offset: int, size: int, value: int) -> trio.Event | None:
        """Write a register; an event, if any, says when the guest's write has had its effect."""
        if offset < ISR:
            return self._write_common(offset - COMMON, size, value)
        if DEVICE <= offset < DEVICE + DEVICE_SIZE:
            self.device.write_config(offset - DEVICE, value.to_bytes(size, "little"))
        elif NOTIFY <= offset < NOTIFY + NOTIFY_SIZE:
            self._kick((offset - NOTIFY) // NOTIFY_STRIDE)
        elif MSIX_TABLE <= offset < MSIX_PBA:
            changes = self._msix.write_table(offset - MSIX_TABLE, size, value)
            self._around.sources.apply(changes)
        return None

    def _take_isr(self) -> int:
        """Reading the ISR status clears it."""
        isr, self._isr = self._isr, Isr(0)
        return isr

    def _read_device(self, offset: int, size: int) -> int:
        data = self.device.read_config(offset, size) if offset < DEVICE_SIZE else b""
        return int.from_bytes(data[:size], "little")

    def _kick(self, queue: int) -> None:
        if queue < len(self._around.kicks):
            os.eventfd_write(self._around.kicks[queue], 1)

    def _write_common(self, offset: int, size: int, value: int) -> trio.Event | None:
        done = None
        for event in self._common.write(offset, size, value):
            match event:
                case StatusWritten(Outcome.RESET, before):
                    done = self._reset(before)
                case StatusWritten(Outcome.ACTIVATE, _):
                    self._activate()
                case VectorChosen(queue, vector):
                    source = self._config_source if queue is None else queue
                    self._around.sources.lead(source, vector)
                case QueueReset(queue):
                    done = self._reset_queue(queue)
                case QueueEnabled(queue) if self._active is not None:
                    self._activate()
        return None if done is None or done.is_set() else done

    # The device's life

    def _activate(self) -> None:
        """Have the device serve the enabled queues; those that it serves already go on."""
        known = {} if self._active is None else {q.index: q for q in self._active.queues}
        try:
            queues = tuple(
                known.get(index) or self._open_queue(state)
                for index in range(self._config_source)
                if (state := self._common.queue(index)) is not None
            )
        except GuestError as error:
            self.broken(error)
            return
        if self._active is None:
            self._emit("activated")
        self._run(queues)

    def _open_queue(self, state: QueueState) -> Queue:
        kick_fd = self._around.kicks[state.index]
        interrupt_fd = self._around.sources.fds[state.index]
        return self._around.open_queue(state, kick_fd=kick_fd, interrupt_fd=interrupt_fd)

    def _run(self, queues: tuple[Queue, ...]) -> None:
        self.runner.stop()
        features = self._negotiation.accepted
        self._active = Active(features, queues, self._around.memory, self.config_changed)
        self.runner.start(self._active)

    def _reset(self, before: Status) -> trio.Event:
        for source in range(self._config_source + 1):
            self._around.sources.lead(source, None)
        self._isr = Isr(0)
        if before & Status.DRIVER_OK:
            self._emit("reset")
        self._active = None
        done = self.runner.stop()
        self.device.reset()
        if not done.is_set():
            self._common.lingering |= before  # Asked for twice, it is under way still.
            self._common.refresh()
        return done

    def _reset_queue(self, queue: int) -> trio.Event:
        """Take one queue from the device; the others are served again at once."""
        done = self.runner.stop()
        if self._active is not None:
            self._run(tuple(q for q in self._active.queues if q.index != queue))
        if done.is_set():
            self._common.finish_reset()
        return done

    async def sleep(self) -> None:
        """Stop the device between two requests; the guest must not run meanwhile."""
        await self.runner.stop().wait()

    def wake(self) -> None:
        """Let the device go on where it stood."""
        if self._active is not None:
            self.runner.start(self._active)

    def save(self) -> tuple[SavedTransport, SavedMsix]:
        """Give what a snapshot keeps, of a device that sleeps."""
        from vmm.virtio.saved import SavedPosition, SavedTransport  # Only now: most VMs never are.

        served = {} if self._active is None else {q.index: q.save() for q in self._active.queues}
        queues = self._common.save_queues()
        for index, at in served.items():
            position = SavedPosition(
                next_avail=at.next_avail, next_used=at.next_used, unsignalled=at.unsignalled
            )
            kept = queues[index].model_copy(update={"position": position})
            queues = (*queues[:index], kept, *queues[index + 1 :])
        state = SavedTransport(
            device_id=self.device.DEVICE_ID,
            accepted=self._negotiation.accepted,
            status=self._negotiation.status,
            isr=self._isr,
            queues=queues,
            is_active=self._active is not None,
            **self._common.registers(),
        )
        return state, self._msix.save()

    def load(
        self, state: SavedTransport, vectors: SavedMsix, configuration: SavedConfiguration
    ) -> None:
        """Take over what a snapshot kept; the device sleeps until ``wake``.

        Raises: ConfigError when it is not this device's state (caller), GuestError when a queue
        cannot be what it says, HostError.
        """
        self.configuration.load(configuration)
        self._around.window.move(self.bar.address)
        self._negotiation.load(state.status, state.accepted)
        self._isr = Isr(state.isr)
        for queue, vector in self._common.load(state):
            source = self._config_source if queue is None else queue
            self._around.sources.lead(source, vector)
        self._around.sources.apply(self._msix.load(vectors))
        # Interrupts may have been on their way; one more than needed does no harm.
        if self._isr & Isr.CONFIG:
            self._around.sources.signal(self._config_source)
        if state.is_active:
            self._active = self._active_as(state.queues)

    def _active_as(self, saved: Sequence[SavedQueue]) -> Active:
        queues = []
        for index, each in enumerate(saved):
            fresh = self._common.queue(index)
            if fresh is None or each.position is None:
                continue
            at = each.position
            moved = fresh.moved_to(at.next_avail, at.next_used, at.unsignalled)
            queues.append(self._open_queue(moved))
            self._around.sources.signal(index)
        features = self._negotiation.accepted
        return Active(features, tuple(queues), self._around.memory, self.config_changed)

    def stopped(self) -> None:
        """The device's tasks have ended; a reset that waited for it is done."""
        self._common.finish_reset()

    def broken(self, error: VmmError) -> None:
        """Stand still until the driver resets the device, and tell it so."""
        logger.warning("Device %s needs a reset: %s", self.device.id, error)
        if self._around.report_fault is not None:
            self._around.report_fault()
        self._active = None
        self.runner.stop()
        self._negotiation.need_reset()
        self._emit("needs-reset", reason=str(error))
        self.config_changed()

    def config_changed(self) -> None:
        """Tell the driver that the device's configuration or status is another."""
        self._common.change_generation()
        if self._negotiation.status & Status.DRIVER_OK:
            self._isr |= Isr.CONFIG
            self._around.sources.signal(self._config_source)

    def _emit(self, event: str, **more: str) -> None:
        self._around.events.emit("virtio-device", event, {"id": self.device.id, **more})
