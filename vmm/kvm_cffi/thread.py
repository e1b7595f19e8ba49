"""A vCPU's thread: one pthread that lives in C and never touches Python.

The thread serves exits of rungs 0 and 1 by itself. For the rest it fills the exit slot, signals
``event_fd`` and waits: read the descriptor, look at ``state``, then ``take_exit``.
"""

from __future__ import annotations

import os
import warnings
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import ConfigError, InternalError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.check import check
from vmm.kvm_cffi.closing import Closing
from vmm.kvm_cffi.event import open_event
from vmm.kvm_cffi.mechanisms import allocated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.kvm_cffi.router import ExitRouter
    from vmm.kvm_cffi.vcpu import Vcpu

MAX_NAME_BYTES = 15
MAX_HOST_CPU = 65535


class ExitKind(IntEnum):
    """What a vCPU came out for. After any but the first three the thread stands still."""

    PIO = lib.VK_EXIT_PIO
    MMIO = lib.VK_EXIT_MMIO
    IOAPIC_EOI = lib.VK_EXIT_IOAPIC_EOI
    """``value`` is the vector whose level-triggered interrupt has ended; answer with 0."""
    SHUTDOWN = lib.VK_EXIT_SHUTDOWN
    """A triple fault."""
    SYSTEM_EVENT = lib.VK_EXIT_SYSTEM_EVENT
    """``value`` is KVM_SYSTEM_EVENT_*, ``data`` its details."""
    INTERNAL_ERROR = lib.VK_EXIT_INTERNAL_ERROR
    """KVM gave up; ``value`` is the suberror, ``data`` its details."""
    FAIL_ENTRY = lib.VK_EXIT_FAIL_ENTRY
    """The processor refused the guest's state; ``value`` is its reason, ``data`` the host CPU."""
    RUN_ERROR = lib.VK_EXIT_RUN_ERROR
    """KVM_RUN failed; ``value`` is the errno."""
    HLT = lib.VK_EXIT_HLT
    """Halted, and the VM has no interrupt controller that could wake it."""
    HYPERV = lib.VK_EXIT_HYPERV
    """Reserved: Hyper-V exits are answered in C."""
    DEBUG = lib.VK_EXIT_DEBUG
    """What ``set_guest_debug`` asked for; ``value`` is the exception (1 or 3), ``data`` the address
    and DR6."""
    UNEXPECTED = lib.VK_EXIT_UNEXPECTED
    """An exit this program did not ask KVM for; ``value`` is KVM's exit reason."""


class ThreadState(Enum):
    """Where a vCPU's thread is in its life."""

    STOPPED = "stopped"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"


class Exit(NamedTuple):
    """One exit for Python; ``count`` is the length of the string access it is part of, or 1."""

    kind: ExitKind
    address: int
    size: int
    is_write: bool
    value: int
    count: int  # type: ignore[assignment]  # over tuple.count
    data: tuple[int, ...]


class ExitCounts(NamedTuple):
    """Accesses answered by a mechanism in C, by nobody, and by Python; and kicks received."""

    in_c: int
    unclaimed: int
    to_loop: int
    kicks: int


KINDS = tuple(ExitKind)
STATES = (ThreadState.STOPPED, ThreadState.RUNNING, ThreadState.PAUSED, ThreadState.EXITED)


class VcpuThread(Closing):
    """The thread that runs one vCPU; a context manager that ends it.

    ``event_fd`` is readable when the slot is filled or the state has changed. All methods belong to
    one Python thread. None of them waits for the vCPU but ``join`` and ``close``.
    """

    event_fd = -1

    def __init__(
        self,
        vcpu: Vcpu,
        router: ExitRouter,
        *,
        name: str,
        host_cpus: Sequence[int] | None = None,
    ) -> None:
        self._vcpu = vcpu
        self._router = router
        self._host_cpus = tuple(host_cpus or ())
        self._slot = ffi.new("struct vk_exit *")
        event_fd = open_event()
        short = name.encode()[:MAX_NAME_BYTES]
        made = lib.vk_thread_new(
            vcpu.fd, vcpu.run_area, vcpu.run_bytes, router.handle, event_fd, short
        )
        self._thread = ffi.gc(allocated(made), lib.vk_thread_free)
        self.event_fd = event_fd

    def start(self) -> None:
        """Make the thread and let it run, or stand if a pause was requested before.

        Raises: ConfigError (caller) for host CPUs that do not exist, HostError (host).
        """
        if any(not 0 <= cpu <= MAX_HOST_CPU for cpu in self._host_cpus):
            raise ConfigError(
                f"Host CPUs {list(self._host_cpus)} are not all between 0 and {MAX_HOST_CPU}"
            )
        if self._vcpu.has_thread or self.event_fd < 0:
            raise InternalError(f"vCPU {self._vcpu.index} has a thread already, or had this one")
        cpus = ffi.new("uint32_t[]", self._host_cpus)
        result = lib.vk_thread_start(self._thread, cpus, len(self._host_cpus))
        check("pthread_create", result)
        self._vcpu.has_thread = True

    @property
    def state(self) -> ThreadState:
        """Where the thread is; changes are announced on ``event_fd``.

        Read after ``request_pause``, PAUSED means that the guest does not run and will not.
        """
        return STATES[lib.vk_thread_state(self._thread)]

    @property
    def tid(self) -> int:
        """The kernel's number of the thread, or 0 before it runs."""
        return int(lib.vk_thread_tid(self._thread))

    @property
    def exit_counts(self) -> ExitCounts:
        """How often the guest came out, by who answered."""
        counts = ffi.new("struct vk_exit_counts *")
        lib.vk_thread_exit_counts(self._thread, counts)
        return ExitCounts(counts.in_c, counts.unclaimed, counts.to_loop, counts.kicks)

    def request_pause(self) -> None:
        """Ask the thread to stand between two instructions.

        An access in flight is finished first, so keep answering until the state is PAUSED.
        """
        lib.vk_thread_request_pause(self._thread)

    def resume(self) -> None:
        """Let the thread run again after a pause or a lifecycle exit that has been taken."""
        lib.vk_thread_resume(self._thread)

    def request_exit(self) -> None:
        """Ask the thread to end, wherever it is; this cannot be undone."""
        lib.vk_thread_request_exit(self._thread)

    def inject_nmi(self) -> None:
        """Send the vCPU a non-maskable interrupt, now or when it runs again."""
        lib.vk_thread_inject_nmi(self._thread)

    def join(self) -> None:
        """Wait until the thread has ended; at once after the state EXITED."""
        check("pthread_join", lib.vk_thread_join(self._thread))
        self._vcpu.has_thread = False

    def take_exit(self) -> Exit | None:
        """Return the exit in the slot, once; PIO, MMIO and IOAPIC_EOI then need an ``answer``."""
        slot = self._slot
        if not lib.vk_thread_take_exit(self._thread, slot):
            return None
        data = tuple(slot.data[0 : slot.data_count]) if slot.data_count else ()
        return Exit(
            KINDS[slot.kind],
            slot.address,
            slot.size,
            slot.is_write != 0,
            slot.value,
            slot.count,
            data,
        )

    def answer(self, value: int) -> None:
        """Give a read its value (anything for a write) and let the vCPU go on.

        Raises: InternalError when no exit has been taken.
        """
        if lib.vk_thread_answer(self._thread, value) < 0:
            raise InternalError("There is no exit to answer; take one first")

    def close(self) -> None:
        """End the thread, wait for it, and close the descriptor. A second call does nothing."""
        if self.event_fd < 0:
            return
        self.request_exit()
        self.join()
        fd, self.event_fd = self.event_fd, -1
        os.close(fd)

    def __del__(self) -> None:
        # The collector runs this before it frees what the thread uses, so the thread ends in time.
        if self.event_fd >= 0:
            warnings.warn(f"Unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()
