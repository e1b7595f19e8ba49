"""Doorbells: places in a BAR whose writes KVM turns into events, without an exit to anybody."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.kvm_cffi.event import open_events

if TYPE_CHECKING:
    from types import TracebackType

    from vmm.kvm_cffi import Vm


class Doorbells:
    """A row of doorbells; a context manager that closes their event descriptors.

    ``offset`` is where in the BAR the first one is, ``stride`` how far it is to the next, in bytes.
    Raises: HostError.
    """

    def __init__(self, vm: Vm, count: int, *, offset: int, stride: int) -> None:
        self.fds = open_events(count)
        self._vm = vm
        self._offset = offset
        self._stride = stride
        self._rings: list[tuple[int, int]] = []
        """What KVM has been told: each doorbell's descriptor and address."""

    def __enter__(self) -> Doorbells:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.move(None)
        finally:  # A VM that KVM has given up refuses everything.
            for fd in self.fds:
                os.close(fd)
            self.fds = ()

    def move(self, base: int | None) -> None:
        """Be in a BAR that begins at an address, or nowhere. Raises: HostError."""
        # Without a length a write of any width rings, and KVM finds the doorbell sooner.
        while self._rings:
            self._vm.ioeventfd(*self._rings.pop(), 0, assign=False)
        if base is None:
            return
        for number, fd in enumerate(self.fds):
            ring = fd, base + self._offset + number * self._stride
            self._vm.ioeventfd(*ring, 0)
            self._rings.append(ring)
