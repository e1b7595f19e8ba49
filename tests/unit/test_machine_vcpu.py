"""The task of a vCPU: exits to handlers and back, pausing, and the end of its thread."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from vmm.errors import ConfigError, HostError
from vmm.kvm_cffi import Exit, ExitKind, ThreadState, VcpuThread
from vmm.machine.bus import Bus
from vmm.machine.vcpu import EXIT_DEADLINE_S, VcpuTask, pause_all

PORT = 0x70
REGISTERS = 0xD000_0000


class FakeThread(VcpuThread):
    """A thread that a test steps by hand."""

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.now = ThreadState.RUNNING
        self.exit: Exit | None = None
        self.answers: list[int] = []
        self.requests: list[str] = []
        self.error: HostError | None = None
        self.ends_by_itself = True

    @property
    def state(self) -> ThreadState:
        return self.now

    def start(self) -> None:
        if self.error is not None:
            raise self.error

    def become(self, state: ThreadState, exit_: Exit | None = None) -> None:
        """Change the state, fill the slot, and announce it."""
        self.now, self.exit = state, exit_
        os.eventfd_write(self.event_fd, 1)

    def take_exit(self) -> Exit | None:
        taken, self.exit = self.exit, None
        return taken

    def answer(self, value: int) -> None:
        self.answers.append(value)

    def request_pause(self) -> None:
        self.requests.append("pause")

    def resume(self) -> None:
        self.requests.append("resume")

    def request_exit(self) -> None:
        self.requests.append("exit")
        if self.ends_by_itself:
            self.become(ThreadState.EXITED)

    def inject_nmi(self) -> None:
        self.requests.append("nmi")

    def close(self) -> None:
        if self.event_fd >= 0:
            assert self.now in (ThreadState.EXITED, ThreadState.STOPPED) or self.error
            os.close(self.event_fd)
            self.event_fd = -1


class Register:
    """A handler with one value; a write may have an effect that comes later."""

    def __init__(self) -> None:
        self.value = 0x1234
        self.effect: trio.Event | None = None

    def read(self, offset: int, size: int) -> int:
        return self.value + offset

    def write(self, offset: int, size: int, value: int) -> trio.Event | None:
        self.value = value
        return self.effect


class Sink:
    """Keeps what concerns the whole VM."""

    def __init__(self) -> None:
        self.vectors: list[int] = []
        self.ends: list[tuple[int, ExitKind]] = []

    def end_of_interrupt(self, vector: int) -> None:
        self.vectors.append(vector)

    def lifecycle_exit(self, vcpu: int, exit_: Exit) -> None:
        self.ends.append((vcpu, exit_.kind))


class Bench:
    """A vCPU's task with everything around it faked."""

    def __init__(self, *host_cpus: int) -> None:
        self.thread, self.sink = FakeThread(), Sink()
        self.register, self.device = Register(), Register()
        ports, mmio = Bus("port"), Bus("memory-mapped")
        ports.claim(PORT, 2, self.register)
        mmio.claim(REGISTERS, 8, self.device)
        self.task = VcpuTask(
            self.thread, 3, ports=ports, mmio=mmio, sink=self.sink, host_cpus=host_cpus
        )

    async def meet(self, exit_: Exit, state: ThreadState = ThreadState.RUNNING) -> None:
        """Let the guest come out, and wait until all is quiet."""
        self.thread.become(state, exit_)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def running() -> AsyncIterator[Bench]:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.task.run)
        yield bench
        nursery.cancel_scope.cancel()


def access(kind: ExitKind, address: int, size: int, value: int | None = None) -> Exit:
    return Exit(kind, address, size, value is not None, value or 0, 1, ())


def event(kind: ExitKind, value: int = 0) -> Exit:
    return Exit(kind, 0, 0, False, value, 1, ())


async def test_read_is_answered_by_the_handler_of_its_space() -> None:
    async with running() as bench:
        await bench.meet(access(ExitKind.PIO, PORT + 1, 2))
        await bench.meet(access(ExitKind.MMIO, REGISTERS, 1))

        assert bench.thread.answers == [0x1235, 0x34]


async def test_write_reaches_its_handler_and_is_answered() -> None:
    async with running() as bench:
        await bench.meet(access(ExitKind.MMIO, REGISTERS + 4, 4, 0xBEEF))

        assert (bench.device.value, bench.thread.answers) == (0xBEEF, [0])


async def test_write_with_a_later_effect_is_answered_after_it() -> None:
    async with running() as bench:
        bench.register.effect = trio.Event()
        await bench.meet(access(ExitKind.PIO, PORT, 1, 7))
        assert bench.thread.answers == []

        bench.register.effect.set()
        await trio.testing.wait_all_tasks_blocked()

        assert bench.thread.answers == [0]


async def test_end_of_interrupt_goes_to_the_sink_and_is_answered() -> None:
    async with running() as bench:
        await bench.meet(event(ExitKind.IOAPIC_EOI, 0x41))

        assert (bench.sink.vectors, bench.thread.answers) == ([0x41], [0])


@pytest.mark.parametrize("kind", [ExitKind.SHUTDOWN, ExitKind.INTERNAL_ERROR, ExitKind.HLT])
async def test_lifecycle_exit_goes_to_the_sink_and_is_not_answered(kind: ExitKind) -> None:
    async with running() as bench:
        await bench.meet(event(kind), ThreadState.PAUSED)

        assert (bench.sink.ends, bench.thread.answers) == ([(3, kind)], [])


async def test_pause_waits_until_the_thread_stands() -> None:
    async with running() as bench, trio.open_nursery() as nursery:
        paused = trio.Event()

        async def pause() -> None:
            await bench.task.pause()
            paused.set()

        nursery.start_soon(pause)
        await bench.meet(access(ExitKind.PIO, PORT, 1))
        assert not paused.is_set()

        bench.thread.become(ThreadState.PAUSED)
        await paused.wait()

        assert bench.thread.requests == ["pause"]
        assert bench.thread.answers == [0x34]


async def test_two_that_pause_at_once_both_hear_that_the_thread_stands() -> None:
    async with running() as bench, trio.open_nursery() as nursery:
        nursery.start_soon(bench.task.pause)
        nursery.start_soon(bench.task.pause)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2

        await bench.meet(access(ExitKind.PIO, PORT, 1), ThreadState.PAUSED)

        assert not nursery.child_tasks
        nursery.cancel_scope.cancel()


async def test_pause_of_a_thread_that_stands_already_returns() -> None:
    async with running() as bench:
        await bench.meet(event(ExitKind.SHUTDOWN), ThreadState.PAUSED)

        with trio.fail_after(1):
            await pause_all([bench.task])


async def test_cancel_waits_for_the_end_of_the_thread() -> None:
    bench, ended = Bench(), trio.Event()
    bench.thread.ends_by_itself = False

    async def run(task_status: trio.TaskStatus[None]) -> None:
        try:
            await bench.task.run(task_status=task_status)
        finally:
            ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            assert not ended.is_set()
            bench.thread.become(ThreadState.EXITED)
            await ended.wait()

    assert bench.thread.requests == ["exit"]
    assert bench.thread.event_fd == -1


async def test_thread_that_does_not_end_ends_the_process_after_a_while(
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench, ends = Bench(), list[tuple[int, float]]()
    bench.thread.ends_by_itself = False

    def end_process(code: int) -> None:
        ends.append((code, trio.current_time() - start))
        bench.thread.now = ThreadState.EXITED

    monkeypatch.setattr(os, "_exit", end_process)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.task.run)
        start = trio.current_time()
        nursery.cancel_scope.cancel()

    assert ends == [(1, EXIT_DEADLINE_S)]
    assert "vCPU 3 has not left KVM within 10 s" in caplog.text


async def test_host_cpus_that_cannot_be_had_are_named() -> None:
    bench = Bench(60_000)
    bench.thread.error = HostError("pthread_create", errno.EINVAL)

    with pytest.raises(ConfigError, match=r"vCPU 3 on the host CPUs \[60000\]"):
        await bench.task.run()


async def test_thread_that_cannot_be_made_is_the_hosts_fault() -> None:
    bench = Bench(0)
    bench.thread.error = HostError("pthread_create", errno.EAGAIN)

    with pytest.raises(HostError, match="EAGAIN"):
        await bench.task.run()


async def test_nmi_and_resume_go_to_the_thread() -> None:
    async with running() as bench:
        bench.task.inject_nmi()
        bench.task.resume()

        assert bench.thread.requests == ["nmi", "resume"]
