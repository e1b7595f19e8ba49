"""The guest's paravirtual clock: it stands while a VM does.

That of a machine which is brought back goes on as much later as the host's wall clock says: its
guest then has the right time without asking anybody.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmm.kvm_cffi import ClockData

if TYPE_CHECKING:
    from vmm.kvm_cffi import Vm
    from vmm.machine.saved import SavedClock


class Clock:
    """The clock of one VM."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._clock = 0
        self._stood_at = 0
        self._is_brought_back = False

    def stop(self) -> None:
        """Note what it shows. Raises: HostError."""
        self._clock, self._stood_at = self._vm.get_clock().clock, time.time_ns()

    def start(self) -> None:
        """Let it go on where it stood. Raises: HostError."""
        passed = max(0, time.time_ns() - self._stood_at) if self._is_brought_back else 0
        self._vm.set_clock(ClockData(self._clock + passed))
        self._is_brought_back = False

    def save(self) -> SavedClock:
        """Give what a snapshot keeps of a clock that stands."""
        from vmm.machine.saved import SavedClock  # Only now: most VMs never are.

        return SavedClock(clock=self._clock, stood_at=self._stood_at, read_at=time.time_ns())

    def load(self, state: SavedClock) -> None:
        """Stand where another clock stood."""
        self._clock, self._stood_at = state.clock, state.stood_at
        self._is_brought_back = True
