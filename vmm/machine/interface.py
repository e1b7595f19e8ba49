"""What the VM owner drives and is told by: a machine, its consoles, and an event sink."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vmm.config.pci import PciSlot
    from vmm.config.vm import VmConfig
    from vmm.machine.bus import Lifecycle
    from vmm.machine.consoles import Consoles
    from vmm.machine.hotplug import Added


class Events(Protocol):
    """Who is told of what happened."""

    def emit(self, source: str, event: str) -> None: ...


class Machine(Protocol):
    """A built VM, as its owner drives it."""

    @property
    def memory_actual_size(self) -> int: ...
    @property
    def device_tree(self) -> dict[str, dict[str, object]]: ...
    @property
    def counters(self) -> dict[str, dict[str, int]]: ...
    def described_in(self, config: VmConfig) -> VmConfig: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def add_device(self, section: str, entry: PciSlot) -> Added: ...
    def remove_device(self, id: str) -> str: ...
    async def resize_vcpus(self, count: int) -> None: ...
    def resize_disk(self, name: str, size: int) -> None: ...
    def press_power_button(self) -> None: ...
    def inject_nmi(self) -> None: ...


OpenConsoles = Callable[["VmConfig"], AbstractAsyncContextManager["Consoles"]]
OpenMachine = Callable[["VmConfig", "Consoles", "Lifecycle"], AbstractAsyncContextManager[Machine]]
