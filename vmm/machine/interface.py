"""What the VM owner drives and is told by: a machine, its consoles, and an event sink."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vmm.config.pci import PciSlot
    from vmm.config.vm import VmConfig
    from vmm.kvm_cffi import GuestMemoryMap, Vm
    from vmm.machine.bus import Lifecycle
    from vmm.machine.consoles import Consoles
    from vmm.machine.dirty import DirtyLog
    from vmm.machine.hotplug import Added
    from vmm.machine.memory import GuestMemory
    from vmm.machine.processors import Processors
    from vmm.machine.saved import SavedMemory
    from vmm.snapshot.state import MachineState


class Events(Protocol):
    """Who is told of what happened."""

    def emit(
        self, source: str, event: str, properties: Mapping[str, str] | None = None
    ) -> None: ...


class Machine(Protocol):
    """A built VM, as its owner drives it."""

    @property
    def memory(self) -> GuestMemory: ...
    @property
    def memory_map(self) -> GuestMemoryMap: ...
    @property
    def cpus(self) -> Processors: ...
    @property
    def memory_actual_size(self) -> int: ...
    @property
    def device_tree(self) -> dict[str, dict[str, object]]: ...
    @property
    def counters(self) -> dict[str, dict[str, int]]: ...
    def described_in(self, config: VmConfig) -> VmConfig: ...
    def watch_ram(self) -> AbstractContextManager[DirtyLog]: ...
    def release_locks(self) -> None: ...
    def take_locks(self) -> None: ...
    async def until_filled(self) -> None: ...
    @property
    def missing_bytes(self) -> int: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    def rest(self) -> None: ...
    def go_on(self) -> None: ...
    def save(self) -> MachineState: ...
    async def snapshot(self, folder: str, config: VmConfig) -> None: ...
    async def add_device(self, section: str, entry: PciSlot) -> Added: ...
    def remove_device(self, id: str) -> str: ...
    async def resize_vcpus(self, count: int) -> None: ...
    @property
    def ram_size(self) -> int: ...
    async def grow_ram(self, size: int) -> None: ...
    def check_payload(self, config: VmConfig) -> None: ...
    def resize_zone(self, zone: str, size: int) -> None: ...
    def resize_balloon(self, size: int) -> None: ...
    async def dump_core(self, path: str, *, is_running: bool) -> None: ...
    def resize_disk(self, name: str, size: int) -> None: ...
    def press_power_button(self) -> None: ...
    def inject_nmi(self) -> None: ...


class MachineSource(Protocol):
    """Where a machine comes from that is brought back: a snapshot, or another host."""

    @property
    def memory(self) -> SavedMemory:
        """How its RAM is laid out, known before any of it is mapped."""

    @property
    def memory_fds(self) -> Mapping[int, int]:
        """Of each KVM slot, the descriptor of RAM that is handed over; empty where none is."""

    async def provide(self, memory: GuestMemory, vm: Vm) -> MachineState:
        """Fill RAM that is mapped and in its slots, and give the state of all the rest.

        Raises: ConfigError (caller), HostError, PeerError; the machine is then not built.
        """


class Arrival(MachineSource, Protocol):
    """A machine that comes from another VMM."""

    async def completion(self) -> bool:
        """Say that the machine is built, and wait to be given it: whether it is to run.

        Raises: PeerError when it stays where it was.
        """

    async def confirm(self) -> None:
        """Say that the VM is here, as it was given and runs if it is to. It ends."""


OpenConsoles = Callable[["VmConfig"], AbstractAsyncContextManager["Consoles"]]


class OpenMachine(Protocol):
    """Opens a machine that runs; one from a ``source`` stands until it is resumed."""

    def __call__(
        self,
        config: VmConfig,
        consoles: Consoles,
        lifecycle: Lifecycle,
        *,
        source: MachineSource | None = None,
    ) -> AbstractAsyncContextManager[Machine]: ...
