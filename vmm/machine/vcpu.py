"""A vCPU as a task: it owns one thread that lives in C, and serves that thread's exits.

The thread never needs the interpreter while the guest runs. What C cannot answer comes here
through the exit slot: bus accesses of rung 2 are answered at once; a lifecycle exit (rung 3) parks
the thread and is handed to whoever decides over the VM.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, NoReturn, Protocol

import trio

from vmm.errors import ConfigError, HostError
from vmm.kvm_cffi import Exit, ExitKind, ThreadState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.kvm_cffi import VcpuThread
    from vmm.machine.bus import Bus

EXIT_DEADLINE_S = 10.0
"""A kicked vCPU leaves KVM_RUN within microseconds, unless it waits there for memory that the host
does not give it: a page of a file, or of swap space, on storage that does not answer."""

EXIT_STUCK = 1
"""The process's exit code then."""

logger = logging.getLogger(__name__)


class ExitSink(Protocol):
    """Who hears of what concerns the whole VM."""

    def end_of_interrupt(self, vector: int) -> None:
        """A level-triggered interrupt's end was signalled."""

    def lifecycle_exit(self, vcpu: int, exit_: Exit) -> None:
        """A vCPU stopped for good: triple fault, system event, or an error of KVM."""


class VcpuTask:
    """One vCPU's thread and its exits; ``run`` is the thread's whole life."""

    def __init__(
        self,
        thread: VcpuThread,
        index: int,
        *,
        ports: Bus,
        mmio: Bus,
        sink: ExitSink,
        host_cpus: Sequence[int] = (),
    ) -> None:
        self._thread = thread
        self._index = index
        self._host_cpus = host_cpus
        self._ports = ports
        self._mmio = mmio
        self._sink = sink
        self._paused = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the thread and serve its exits until cancelled.

        Cancel: the thread has ended and its resources are back when this returns. One that does
        not end within ten seconds ends the process.
        Raises: ConfigError (caller) when it may run on none of its host CPUs, HostError when the
        thread cannot be made.
        """
        with self._thread:
            self._start()
            try:
                task_status.started()
                while True:
                    await self._wake()
                    await self._serve()
            finally:
                self._thread.request_exit()
                with trio.move_on_after(EXIT_DEADLINE_S, shield=True) as patience:
                    while self._thread.state is not ThreadState.EXITED:
                        await self._wake()
                if patience.cancelled_caught:
                    self._end_the_process()
                self._paused.set()  # Whoever waits for it to stand has what it wanted.

    async def pause(self) -> None:
        """Stop the thread between two instructions and wait until it stands, or has ended.

        Several may wait at once: a debugger and the API each stop a machine.
        """
        if self._paused.is_set():
            self._paused = trio.Event()
        self._thread.request_pause()
        # A thread that stands already, after a lifecycle exit or because it was resumed only a
        # moment ago, stays as it is and announces nothing.
        if self._thread.state not in (ThreadState.PAUSED, ThreadState.EXITED):
            await self._paused.wait()

    def rest(self) -> None:
        """Ask the thread to stop between two instructions, without waiting for it."""
        self._thread.request_pause()

    def resume(self) -> None:
        """Let a paused thread run on."""
        self._thread.resume()

    def inject_nmi(self) -> None:
        """Send the guest a non-maskable interrupt on this vCPU."""
        self._thread.inject_nmi()

    def _start(self) -> None:
        try:
            self._thread.start()
        except HostError as error:
            if error.errno != errno.EINVAL or not self._host_cpus:
                raise
            raise ConfigError(
                f"cpus.affinity (--cpus affinity=…) puts vCPU {self._index} on the host CPUs "
                f"{list(self._host_cpus)}, and this process may use none of them; name some that "
                f"it may, such as {sorted(os.sched_getaffinity(0))}"
            ) from error

    def _end_the_process(self) -> NoReturn:
        """The thread uses the guest's memory, so none of that can be given back while it is there,
        and to join it would stop the loop for ever. The kernel can end it, with all the rest.
        """
        logger.error(
            "vCPU %d has not left KVM within %d s: the host does not give it memory that it waits "
            "for. The process ends at once; look at the storage that holds the guest's memory",
            self._index,
            EXIT_DEADLINE_S,
        )
        os._exit(EXIT_STUCK)

    async def _wake(self) -> None:
        await trio.lowlevel.wait_readable(self._thread.event_fd)
        os.eventfd_read(self._thread.event_fd)

    async def _serve(self) -> None:
        if self._thread.state is ThreadState.PAUSED:
            self._paused.set()
        exit_ = self._thread.take_exit()
        if exit_ is not None:
            await self._dispatch(exit_)

    async def _dispatch(self, exit_: Exit) -> None:
        match exit_.kind:
            case ExitKind.PIO:
                self._thread.answer(await self._access(self._ports, exit_))
            case ExitKind.MMIO:
                self._thread.answer(await self._access(self._mmio, exit_))
            case ExitKind.IOAPIC_EOI:
                self._sink.end_of_interrupt(exit_.value)
                self._thread.answer(0)
            case _:
                self._sink.lifecycle_exit(self._index, exit_)

    async def _access(self, bus: Bus, exit_: Exit) -> int:
        if exit_.is_write:
            effect = bus.write(exit_.address, exit_.size, exit_.value)
            if effect is not None:
                await effect.wait()
            return 0
        return bus.read(exit_.address, exit_.size)


async def pause_all(vcpus: Sequence[VcpuTask]) -> None:
    """Stop every vCPU; all are asked before any is waited for."""
    async with trio.open_nursery() as nursery:
        for vcpu in vcpus:
            nursery.start_soon(vcpu.pause)
