"""A vCPU as a task: it owns one thread that lives in C, and serves that thread's exits.

The thread never needs the interpreter while the guest runs. What C cannot answer comes here
through the exit slot: bus accesses of rung 2 are answered at once; a lifecycle exit (rung 3) parks
the thread and is handed to whoever decides over the VM.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Protocol

import trio

from vmm.kvm_cffi import Exit, ExitKind, ThreadState, VcpuThread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.kvm_cffi import ExitRouter, Vcpu
    from vmm.machine.bus import Bus

EXIT_DEADLINE_S = 10.0
"""A kicked vCPU leaves KVM_RUN within microseconds; beyond this the host's KVM is broken."""

logger = logging.getLogger(__name__)


class ExitSink(Protocol):
    """Who hears of what concerns the whole VM."""

    def end_of_interrupt(self, vector: int) -> None:
        """A level-triggered interrupt's end was signalled."""

    def lifecycle_exit(self, vcpu: int, exit_: Exit) -> None:
        """A vCPU stopped for good: triple fault, system event, or an error of KVM."""


class VcpuTask:
    """One vCPU, its thread and its exits; ``run`` is its whole life."""

    def __init__(
        self,
        vcpu: Vcpu,
        index: int,
        router: ExitRouter,
        *,
        ports: Bus,
        mmio: Bus,
        sink: ExitSink,
        host_cpus: Sequence[int] | None,
    ) -> None:
        self._thread = VcpuThread(vcpu, router, name=f"vcpu{index}", host_cpus=host_cpus)
        self._index = index
        self._ports = ports
        self._mmio = mmio
        self._sink = sink
        self._paused = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the thread and serve its exits until cancelled.

        Cancel: the thread has ended and its resources are back when this returns.
        Raises: HostError when the thread cannot be made.
        """
        with self._thread:
            self._thread.start()
            try:
                task_status.started()
                while True:
                    await self._wake()
                    self._serve()
            finally:
                self._thread.request_exit()
                with trio.CancelScope(shield=True), trio.fail_after(EXIT_DEADLINE_S):
                    while self._thread.state is not ThreadState.EXITED:
                        await self._wake()

    async def pause(self) -> None:
        """Stop the thread between two instructions and wait until it stands."""
        self._paused = trio.Event()
        self._thread.request_pause()
        await self._paused.wait()

    def resume(self) -> None:
        """Let a paused thread run on."""
        self._thread.resume()

    def inject_nmi(self) -> None:
        """Send the guest a non-maskable interrupt on this vCPU."""
        self._thread.inject_nmi()

    async def _wake(self) -> None:
        await trio.lowlevel.wait_readable(self._thread.event_fd)
        os.eventfd_read(self._thread.event_fd)

    def _serve(self) -> None:
        if self._thread.state is ThreadState.PAUSED:
            self._paused.set()
        exit_ = self._thread.take_exit()
        if exit_ is not None:
            self._dispatch(exit_)

    def _dispatch(self, exit_: Exit) -> None:
        match exit_.kind:
            case ExitKind.PIO:
                self._thread.answer(self._access(self._ports, exit_))
            case ExitKind.MMIO:
                self._thread.answer(self._access(self._mmio, exit_))
            case ExitKind.IOAPIC_EOI:
                self._sink.end_of_interrupt(exit_.value)
                self._thread.answer(0)
            case _:
                self._sink.lifecycle_exit(self._index, exit_)

    def _access(self, bus: Bus, exit_: Exit) -> int:
        if exit_.is_write:
            bus.write(exit_.address, exit_.size, exit_.value)
            return 0
        return bus.read(exit_.address, exit_.size)


async def pause_all(vcpus: Sequence[VcpuTask]) -> None:
    """Stop every vCPU; all are asked before any is waited for."""
    async with trio.open_nursery() as nursery:
        for vcpu in vcpus:
            nursery.start_soon(vcpu.pause)
