"""RAM that is read from a file when it is touched: threads in C that never need the interpreter.

Source: Linux Documentation/admin-guide/mm/userfaultfd.rst.
"""

from __future__ import annotations

import errno
import os
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import HostError, PeerError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.closing import Closing
from vmm.kvm_cffi.event import open_event

if TYPE_CHECKING:
    from vmm.kvm_cffi.guest_memory import GuestMemoryMap

HINT = (
    "this process may not handle page faults of the kernel: run it as root, give it CAP_SYS_PTRACE "
    "or access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd to 1"
)


class PagerState(Enum):
    """How far a pager is."""

    FILLING = lib.VK_PAGER_FILLING
    DONE = lib.VK_PAGER_DONE
    FAILED = lib.VK_PAGER_FAILED


class PagerProgress(NamedTuple):
    """Where it stands; ``error`` is an errno, ``faults`` counts who had to wait."""

    state: PagerState
    error: int
    bytes_left: int
    faults: int


class Pager(Closing):
    """Threads that bring RAM from a file; a context manager that ends them.

    ``event_fd`` is readable once all is there, or cannot be. The file may not be closed before
    ``start``, and not change before all is there. Raises: HostError.
    """

    event_fd = -1

    def __init__(self, file_fd: int, file_size: int) -> None:
        event_fd = open_event()
        made = ffi.new("vk_pager **")
        result = lib.vk_pager_new(file_fd, file_size, event_fd, made)
        if result < 0:
            os.close(event_fd)
            raise HostError("userfaultfd", -result, hint=HINT)
        self.event_fd = event_fd
        self._pager = made[0]
        self._last: PagerProgress | None = None

    def add(self, hva: int, size: int, page: int, offset: int) -> int:
        """Watch a region that nobody has touched, and give its number.

        Its content is in the file at ``offset``, where ``mark`` says so. Units: bytes. Raises:
        HostError when the kernel cannot watch such memory.
        """
        result = lib.vk_pager_add(self._pager, hva, size, page, offset)
        if result < 0:
            raise HostError(
                "UFFDIO_REGISTER",
                -result,
                hint="only anonymous memory, memfds, tmpfs and huge pages can be read on demand; "
                "restore with memory_restore_mode Copy",
            )
        return int(result)

    def mark(self, number: int, start: int, size: int) -> None:
        """Say that a part of a region has content in the file; the rest is zero."""
        lib.vk_pager_mark(self._pager, number, start, size)

    def start(self) -> None:
        """Begin to bring what is touched, and all else. Raises: HostError."""
        result = lib.vk_pager_start(self._pager)
        if result < 0:
            raise HostError("pthread_create", -result)

    def ask(self, socket_fd: int) -> None:
        """Before regions are added: have their content come from a peer, by guest addresses.

        The socket does not block; it stays the caller's, and open until this is closed.
        """
        lib.vk_pager_ask(self._pager, socket_fd)

    @property
    def progress(self) -> PagerProgress:
        """Where it stands, or stood when it was closed."""
        if self._last is not None:
            return self._last
        now = ffi.new("struct vk_pager_progress *")
        lib.vk_pager_progress(self._pager, now)
        return PagerProgress(PagerState(now.state), now.error, now.bytes_left, now.faults)

    def give_up(self) -> None:
        """Wait for no peer any more: who waits for a page of his, or touches one, is refused it."""
        if self._last is None:
            lib.vk_pager_give_up(self._pager)

    def close(self) -> None:
        """End the threads. Nobody may touch the memory any more, if it is not all there."""
        fd, self.event_fd = self.event_fd, -1
        if fd >= 0:
            self._last = self.progress
            lib.vk_pager_free(self._pager)
            os.close(fd)


class FaultServer:
    """The other end of ``Pager.ask``: answers for pages of a memory. One thread uses it."""

    def __init__(self, fd: int, memory: GuestMemoryMap) -> None:
        self._fd = fd
        self._memory = memory
        self._server = ffi.new("struct vk_fault_server *")

    @property
    def is_answering(self) -> bool:
        """Whether the peer had no room for all of an answer: serve again when it has."""
        return bool(self._server.left)

    def serve(self) -> int | None:
        """Answer what has come: how many pages, 0 for none, None once the peer has closed.

        It waits for nobody. Raises: PeerError when it is asked for what is no page.
        """
        served = lib.vk_faults_serve(self._fd, self._memory.handle, self._server)
        if served in (-errno.ECONNRESET, -errno.EPIPE):
            return None
        if served < 0:
            raise PeerError(f"The destination's faults cannot be served: {os.strerror(-served)}")
        return int(served)
