"""Which section of the configuration becomes which device, and how its host resources are opened.

``SECTIONS`` is in the order in which devices are made at boot, which decides their PCI slots. To
add a device: a function that opens it, and a row.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vmm.config.changes import CHANGING_SECTIONS
from vmm.config.memory import HotplugMethod
from vmm.config.pci import PciSlot
from vmm.errors import HostError
from vmm.kvm_cffi import Virtqueue
from vmm.machine import small_devices
from vmm.virtio.rng import Rng

if TYPE_CHECKING:
    from collections.abc import Mapping

    import trio

    from vmm.config.disk import DiskConfig
    from vmm.config.ivshmem import IvshmemConfig
    from vmm.config.net import NetConfig
    from vmm.config.pmem import PmemConfig
    from vmm.config.rng import RngConfig
    from vmm.config.vm import VmConfig
    from vmm.config.vsock import VsockConfig
    from vmm.kvm_cffi import GuestMemoryMap, IommuEndpoint
    from vmm.machine.bus import Lifecycle
    from vmm.machine.consoles import Consoles
    from vmm.machine.device_memory import DeviceMemory
    from vmm.machine.disks import DiskPool
    from vmm.machine.memory import GuestMemory
    from vmm.machine.mems import MemSlot
    from vmm.pci.bar import Bar, MemoryBar
    from vmm.pci.configuration import Configuration
    from vmm.saved import SavedState
    from vmm.virtio.device import VirtioDevice
    from vmm.virtio.iommu import Iommu
    from vmm.virtio.queue import Queue, QueueState


class Events(Protocol):
    """Who is told of what happened."""

    def emit(
        self, source: str, event: str, properties: Mapping[str, str] | None = None
    ) -> None: ...


class Board(NamedTuple):
    """What of the machine a device may be given when it is opened.

    ``memory_map`` is the same memory for device code in C, ``device_memory`` where devices put
    memory of their own, ``disk_pool`` gives what disks share. ``iommu`` is there before any device,
    so that those behind it find it; on ``iommu_segments`` all are.
    """

    memory: GuestMemory
    memory_map: GuestMemoryMap
    device_memory: DeviceMemory
    consoles: Consoles
    lifecycle: Lifecycle
    events: Events
    disk_pool: Callable[[], DiskPool]
    iommu: Iommu | None = None
    iommu_segments: tuple[int, ...] = ()

    def open_queue(
        self,
        state: QueueState,
        *,
        kick_fd: int,
        interrupt_fd: int,
        endpoint: IommuEndpoint | None = None,
    ) -> Queue:
        """Make the device's side of a queue. Raises: GuestError when it cannot be one."""
        return Virtqueue(
            self.memory_map,
            state,
            kick_fd=kick_fd,
            interrupt_fd=interrupt_fd,
            endpoint=endpoint,
        )


class RegisterFunction(Protocol):
    """A PCI function that is no virtio device: a BAR with registers, not placed yet.

    It is an IoHandler of that BAR. It may have another one, with memory.
    """

    @property
    def id(self) -> str:
        """Its name in the device tree."""

    @property
    def configuration(self) -> Configuration:
        """Its configuration space."""

    @property
    def bar(self) -> Bar:
        """Its BAR with registers."""

    @property
    def memory(self) -> MemoryBar | None:
        """Its BAR with memory, if it has one."""

    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, size: int, value: int) -> trio.Event | None: ...
    def save(self) -> SavedState: ...


Opener = Callable[[Any, str, Board], AbstractAsyncContextManager["VirtioDevice | RegisterFunction"]]
"""Opens what a section's entry names and makes the device, which gets the id given.

Raises: ConfigError (caller), HostError.
"""


class Section(NamedTuple):
    """A section of the configuration.

    ``name`` is the device's own if it begins with two underscores, else the beginning of the names
    of those that have none. ``has_low_bar`` puts the BARs of its devices, if they are there at
    boot, where firmware that only knows 32-bit addresses reaches them.
    """

    field: str
    name: str
    entries: Callable[[VmConfig], Iterable[PciSlot]]
    open: Opener
    has_low_bar: bool = False
    is_whole: bool = False

    @property
    def has_own_name(self) -> bool:
        """Whether its one device is always called the same."""
        return self.name.startswith("__")

    @property
    def is_removable(self) -> bool:
        """Whether its devices may be taken from a VM while it is there."""
        return self.field in CHANGING_SECTIONS


@asynccontextmanager
async def open_rng(config: RngConfig, id: str, board: Board) -> AsyncIterator[VirtioDevice]:
    """The entropy device over its source. Raises: HostError."""
    with ExitStack() as stack:
        try:
            fd = os.open(config.src, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, fd)
            os.read(fd, 0)  # A directory can be opened, but no more.
        except OSError as error:
            hint = "give rng.src (--rng src=…) a source that can be read, such as /dev/urandom"
            raise HostError.from_os_error(
                "open of the entropy source", error, path=config.src, hint=hint
            ) from error
        yield Rng(id, fd, config.src)


@asynccontextmanager
async def open_disk(config: DiskConfig, id: str, board: Board) -> AsyncIterator[VirtioDevice]:
    """The disk over its image. Raises: ConfigError (caller), UnsupportedError, HostError."""
    from vmm.machine import disks  # Only now: a VM without disks starts sooner.

    async with disks.open_disk(config, id, board.disk_pool()) as device:
        yield device


@asynccontextmanager
async def open_net(config: NetConfig, id: str, board: Board) -> AsyncIterator[VirtioDevice]:
    """The network over its tap. Raises: ConfigError (caller), UnsupportedError, HostError."""
    from vmm.machine import nets  # Only now: a VM without networks starts sooner.

    with nets.open_net(config, id) as device:
        yield device


@asynccontextmanager
async def open_pmem(config: PmemConfig, id: str, board: Board) -> AsyncIterator[VirtioDevice]:
    """The persistent memory over its file. Raises: ConfigError (caller), HostError."""
    from vmm.machine import pmems  # Only now: a VM without persistent memory starts sooner.

    with pmems.open_pmem(config, id, board.device_memory) as device:
        yield device


@asynccontextmanager
async def open_mem(config: MemSlot, id: str, board: Board) -> AsyncIterator[VirtioDevice]:
    """The device by which a memory zone grows. Raises: ConfigError (caller)."""
    from vmm.machine import mems  # Only now: a VM whose memory stays as it is starts sooner.

    yield mems.open_mem(config, id, board.memory)


@asynccontextmanager
async def open_vsock(config: VsockConfig, id: str, board: Board) -> AsyncIterator[VirtioDevice]:
    """The socket device over its unix socket. Raises: HostError."""
    from vmm.machine import vsocks  # Only now: a VM without it starts sooner.

    with vsocks.open_vsock(config, id) as device:
        yield device


@asynccontextmanager
async def open_ivshmem(
    config: IvshmemConfig, id: str, board: Board
) -> AsyncIterator[RegisterFunction]:
    """The shared memory over its file. Raises: ConfigError (caller), HostError."""
    from vmm.machine import ivshmems  # Only now: a VM without it starts sooner.

    with ivshmems.open_ivshmem(config, id) as device:
        yield device


def section_of(field: str) -> Section:
    """The section of a field of the configuration; there must be one."""
    return next(section for section in SECTIONS if section.field == field)


def _console(config: VmConfig) -> tuple[PciSlot, ...]:
    return () if config.console.mode == "Off" else (config.console,)


def _mems(config: VmConfig) -> tuple[MemSlot, ...]:
    if config.memory.hotplug_method != HotplugMethod.VIRTIO_MEM:
        return ()
    from vmm.machine import mems  # Only now: see ``open_mem``.

    return mems.entries(config)


def _optional(field: str) -> Callable[[VmConfig], tuple[PciSlot, ...]]:
    """The entry of a section that may be left out, or is just on or off."""

    def entries(config: VmConfig) -> tuple[PciSlot, ...]:
        section = getattr(config, field)
        if isinstance(section, bool):
            section = PciSlot() if section else None
        return () if section is None else (section,)

    return entries


SECTIONS: tuple[Section, ...] = (
    Section("console", "__console", _console, small_devices.open_console),
    Section("disks", "_disk", lambda config: config.disks or (), open_disk, has_low_bar=True),
    Section("net", "_net", lambda config: config.net or (), open_net),
    Section("rng", "__rng", lambda config: (config.rng,), open_rng),
    Section("pmem", "_pmem", lambda config: config.pmem or (), open_pmem),
    Section("vsock", "_vsock", _optional("vsock"), open_vsock),
    Section("memory", "mem", _mems, open_mem, is_whole=True),
    Section("balloon", "__balloon", _optional("balloon"), small_devices.open_balloon),
    Section("watchdog", "__watchdog", _optional("watchdog"), small_devices.open_watchdog),
    Section("rtc", "__rtc", _optional("rtc"), small_devices.open_rtc),
    Section("iommu", "__iommu", _optional("iommu"), small_devices.open_iommu),
    Section("pvpanic", "__pvpanic", _optional("pvpanic"), small_devices.open_pvpanic),
    Section("ivshmem", "__ivshmem", _optional("ivshmem"), open_ivshmem),
)
