"""The state of a whole machine, part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.machine.board_state import save_board
from vmm.machine.brought_back import layout_of
from vmm.machine.saved import SavedProcessors, SavedVcpu
from vmm.snapshot.state import MachineState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.machine.chipset import Chipset
    from vmm.machine.clock import Clock
    from vmm.machine.devices import Devices
    from vmm.machine.memory import GuestMemory
    from vmm.machine.processors import Processors


def save_machine(
    cpus: Processors,
    vcpus: Mapping[int, SavedVcpu],
    clock: Clock,
    memory: GuestMemory,
    chipset: Chipset,
    devices: Devices,
) -> MachineState:
    """Read a machine that stands, its vCPUs being read already. Raises: HostError."""
    return MachineState(
        clock.save(),
        SavedProcessors(boot_vcpus=cpus.model.boot_vcpus, common_cpuid=cpus.common),
        vcpus,
        layout_of(memory, cpus.model.phys_bits),
        save_board(chipset),
        devices.save(),
    )
