"""From a PCI function's interrupt sources to the vectors its driver chose, and on to KVM.

Each source (a queue, the configuration) has an event descriptor of its own. Its driver leads it to
a vector; a vector that is unmasked has a GSI, and the descriptors led to it raise that. Several
sources may share a vector. While the vector is masked nothing reads the descriptors: they keep
the event, the pending bit shows it, and KVM delivers it when they are attached again.
"""

from __future__ import annotations

import logging
import os
import select
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from vmm.errors import ConfigError
from vmm.kvm_cffi.closing import Closing
from vmm.kvm_cffi.event import open_events

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmm.pci.msix import Message, VectorChanged

logger = logging.getLogger(__name__)

MSI_REGION = 0xFEE
"""Bits 20 and up of an address that is an interrupt; a write elsewhere interrupts nobody."""


class Routes(Protocol):
    """The routing table of the VM: see ``Interrupts``."""

    def allocate_gsi(self) -> int: ...
    def free_gsi(self, gsi: int) -> None: ...
    def set_messages(self, messages: Mapping[int, Message]) -> None: ...
    def attach(self, fd: int, gsi: int) -> None: ...
    def detach(self, fd: int, gsi: int) -> None: ...


class MsixSources(Closing):
    """The interrupt sources of one function; a context manager that closes their descriptors.

    ``fds`` has one eventfd a source: writing it raises the source's interrupt. Raises: HostError.
    """

    def __init__(self, routes: Routes, sources: int) -> None:
        self.fds = open_events(sources)
        self._routes = routes
        self._vector_of: list[int | None] = [None] * sources
        self._gsi_of: dict[int, int] = {}
        self._unmasked: set[int] = set()

    def close(self) -> None:
        """Detach every source, close its descriptor and give the GSIs back."""
        try:
            for vector in list(self._unmasked):
                self._mask(vector)
        finally:  # A VM that KVM has given up refuses everything.
            for fd in self.fds:
                os.close(fd)
            for gsi in self._gsi_of.values():
                self._routes.free_gsi(gsi)
            self.fds, self._vector_of, self._gsi_of = (), [], {}

    def signal(self, source: int) -> None:
        """Raise a source's interrupt."""
        os.eventfd_write(self.fds[source], 1)

    def lead(self, source: int, vector: int | None) -> None:
        """Lead a source to a vector; None drops its interrupts. Raises: HostError."""
        before = self._vector_of[source]
        if before == vector:
            return
        if before in self._unmasked:
            self._routes.detach(self.fds[source], self._gsi_of[before])
        if before is None:
            # What was raised for nobody is no interrupt for who comes later.
            with suppress(BlockingIOError):
                os.eventfd_read(self.fds[source])
        self._vector_of[source] = vector
        if vector in self._unmasked:
            self._routes.attach(self.fds[source], self._gsi_of[vector])

    def apply(self, changes: Iterable[VectorChanged]) -> None:
        """Take over what the guest did to the vector table, in one change of the routing table.

        Raises: HostError.
        """
        messages: dict[int, Message] = {}
        unmasked = []
        for vector, message in changes:
            is_interrupt = message is not None and message.address >> 20 == MSI_REGION
            if message is None or not is_interrupt or not self._has_gsi(vector):
                self._mask(vector)
                continue
            messages[self._gsi_of[vector]] = message
            unmasked.append(vector)
        self._routes.set_messages(messages)
        for vector in unmasked:
            self._unmask(vector)

    def is_pending(self, vector: int) -> bool:
        """Whether a source of a masked vector has an event that waits."""
        poll = select.poll()
        for fd in self._fds_of(vector):
            poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def _has_gsi(self, vector: int) -> bool:
        """Give a vector a GSI if it has none; False when there is none left."""
        if vector not in self._gsi_of:
            try:
                self._gsi_of[vector] = self._routes.allocate_gsi()
            except ConfigError as error:
                # The guest's write cannot fail, and its other vectors are unharmed.
                logger.warning("Vector %d stays masked: %s", vector, error)
                return False
        return True

    def _mask(self, vector: int) -> None:
        if vector in self._unmasked:
            self._unmasked.remove(vector)
            for fd in self._fds_of(vector):
                self._routes.detach(fd, self._gsi_of[vector])

    def _unmask(self, vector: int) -> None:
        if vector not in self._unmasked:
            self._unmasked.add(vector)
            for fd in self._fds_of(vector):
                self._routes.attach(fd, self._gsi_of[vector])

    def _fds_of(self, vector: int) -> list[int]:
        pairs = zip(self._vector_of, self.fds, strict=True)
        return [fd for led_to, fd in pairs if led_to == vector]
