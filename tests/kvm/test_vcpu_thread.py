"""The thread's life: pause, resume, exit from wherever it is, and nothing left behind."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.kvm.bare import ASK, BareMachine, Driver, Machines
from vmm.errors import ConfigError, HostError, InternalError
from vmm.kvm_cffi import ExitKind, ExitRouter, Kvm, ThreadState, VcpuThread

pytestmark = pytest.mark.kvm

COUNTER = 0x4000
RESULT = 0x4010
ASK_ONCE = f"mov ${ASK}, %dx; in %dx, %al"
SPIN = f"{ASK_ONCE}; 1: incl {COUNTER}; jmp 1b"
HALT = f"{ASK_ONCE}; hlt"
TRIPLE_FAULT = "lidt empty; ud2; empty: .word 0; .long 0"


def threads() -> set[str]:
    """Return the ids of this process's threads."""
    return {task.name for task in Path("/proc/self/task").iterdir()}


def come_to(condition: Callable[[], bool]) -> bool:
    """Tell whether a condition holds soon: a joined thread is visible for a moment more."""
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        os.sched_yield()
    return True


def is_gone(tid: int) -> bool:
    """Tell whether a thread has ended.

    Threads are not counted while their VM is open: KVM keeps a worker of its own in the process
    (kvm-nx-lpage-recovery) from the first KVM_RUN until the VM is closed.
    """
    return come_to(lambda: str(tid) not in threads())


def status(thread: VcpuThread, file: str) -> str:
    """Return what the kernel says about a thread."""
    return Path(f"/proc/self/task/{thread.tid}/{file}").read_text()


def descriptors() -> int:
    """Count this process's open descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def let_it_run(machine: BareMachine) -> None:
    """Return when the spinning guest has counted on; it does so without any exit."""
    seen = machine.word(COUNTER)
    with trio.fail_after(10):
        while machine.word(COUNTER) == seen:
            await trio.lowlevel.checkpoint()


async def pause(driver: Driver) -> None:
    driver.thread.request_pause()
    await driver.reach(ThreadState.PAUSED)


async def test_thread_new_is_stopped_and_named_when_running(machines: Machines) -> None:
    machine = machines.make(SPIN)
    thread = machine.threads[0]
    before = thread.state

    await machine.start().next_exit()

    assert (before, thread.state) == (ThreadState.STOPPED, ThreadState.RUNNING)
    assert status(thread, "comm") == "vcpu0\n"


async def test_pause_while_spinning_stands_until_resume(machines: Machines) -> None:
    machine = machines.make(SPIN)
    await machine.start().asked()
    await let_it_run(machine)

    await pause(machine.driver)
    stood = machine.word(COUNTER)
    rip = machine.vcpus[0].get_regs().rip
    await trio.testing.wait_all_tasks_blocked()
    still = machine.word(COUNTER)
    machine.threads[0].resume()
    await machine.driver.reach(ThreadState.RUNNING)
    await let_it_run(machine)

    assert stood == still
    assert rip >= 0x1000


async def test_pause_and_resume_many_times_loses_no_wake_up(machines: Machines) -> None:
    machine = machines.make(SPIN)
    await machine.start().asked()

    for _ in range(200):
        await pause(machine.driver)
        machine.threads[0].resume()

    await machine.driver.reach(ThreadState.RUNNING)
    await let_it_run(machine)


async def test_pause_before_start_stands_at_the_first_instruction(machines: Machines) -> None:
    machine = machines.make(SPIN)
    machine.threads[0].request_pause()

    machine.start()
    await machine.driver.reach(ThreadState.PAUSED)

    assert machine.vcpus[0].get_regs().rip == 0x1000
    machine.threads[0].resume()
    await machine.driver.asked()


async def test_pause_while_halted_stands(machines: Machines) -> None:
    machine = machines.make(HALT)
    await machine.start().asked()

    await pause(machine.driver)

    assert machine.threads[0].state is ThreadState.PAUSED


async def test_pause_with_an_access_in_the_slot_completes_it_first(machines: Machines) -> None:
    machine = machines.make(f"xor %eax, %eax; {ASK_ONCE}; hlt")
    exit_ = await machine.start().next_exit()

    machine.threads[0].request_pause()
    await trio.testing.wait_all_tasks_blocked()
    while_unanswered = machine.threads[0].state
    machine.threads[0].answer(0x5A)
    await machine.driver.reach(ThreadState.PAUSED)

    assert exit_.kind is ExitKind.PIO
    assert while_unanswered is ThreadState.RUNNING
    assert machine.vcpus[0].get_regs().rax == 0x5A


async def test_pause_within_string_input_keeps_every_element(machines: Machines) -> None:
    machine = machines.make(
        f"mov ${RESULT}, %edi; mov $8, %ecx; mov ${ASK}, %dx; cld; rep insb; out %al, %dx; hlt"
    )
    machine.start()

    for at, byte in enumerate(b"12345678"):
        exit_ = await machine.driver.next_exit()
        assert not exit_.is_write
        if at == 3:
            machine.threads[0].request_pause()
            machine.threads[0].resume()
        machine.threads[0].answer(byte)
    await machine.driver.asked()

    assert machine.memory[RESULT : RESULT + 8] == b"12345678"


async def test_exit_while_spinning_ends_the_thread(machines: Machines) -> None:
    machine = machines.make(SPIN)
    await machine.start().asked()
    await let_it_run(machine)
    tid = machine.threads[0].tid

    machine.threads[0].request_exit()
    await machine.driver.reach(ThreadState.EXITED)
    machine.threads[0].join()

    assert is_gone(tid)


async def test_exit_while_the_slot_is_unanswered_ends_the_thread(machines: Machines) -> None:
    machine = machines.make(SPIN)
    await machine.start().next_exit()

    machine.threads[0].request_exit()
    await machine.driver.reach(ThreadState.EXITED)

    machine.threads[0].answer(0)  # too late, and harmless


async def test_exit_while_the_slot_is_not_even_taken_ends_the_thread(machines: Machines) -> None:
    machine = machines.make(SPIN)
    machine.start()
    with trio.fail_after(10):
        while machine.threads[0].exit_counts.to_loop == 0:
            await trio.lowlevel.checkpoint()

    machine.threads[0].request_exit()

    await machine.driver.reach(ThreadState.EXITED)


async def test_exit_while_halted_ends_the_thread(machines: Machines) -> None:
    machine = machines.make(HALT)
    await machine.start().asked()

    machine.threads[0].request_exit()

    await machine.driver.reach(ThreadState.EXITED)


async def test_exit_while_paused_ends_the_thread_and_resume_cannot_undo_it(
    machines: Machines,
) -> None:
    machine = machines.make(SPIN)
    await machine.start().asked()
    await pause(machine.driver)

    machine.threads[0].request_exit()
    machine.threads[0].resume()

    await machine.driver.reach(ThreadState.EXITED)


async def test_triple_fault_is_reported_and_the_thread_stands(machines: Machines) -> None:
    machine = machines.make(TRIPLE_FAULT)

    exit_ = await machine.start().next_exit()

    assert exit_.kind is ExitKind.SHUTDOWN
    assert machine.threads[0].state is ThreadState.PAUSED


async def test_triple_fault_resumed_before_it_is_taken_is_not_lost(machines: Machines) -> None:
    machine = machines.make(TRIPLE_FAULT)
    machine.start()
    await machine.driver.reach(ThreadState.PAUSED)

    machine.threads[0].resume()
    exit_ = await machine.driver.next_exit()

    assert exit_.kind is ExitKind.SHUTDOWN


async def test_thread_resumed_after_a_repaired_fault_runs_on(machines: Machines) -> None:
    machine = machines.make(TRIPLE_FAULT)
    before = machine.vcpus[0].get_sregs()
    regs = machine.vcpus[0].get_regs()
    await machine.start().next_exit()
    machine.write(0x1000, bytes.fromhex("66ba0001ecf4"))  # mov $0x100, %dx; in %dx, %al; hlt

    machine.vcpus[0].set_sregs(before)
    machine.vcpus[0].set_regs(regs)
    machine.threads[0].resume()
    exit_ = await machine.driver.asked()

    assert (exit_.kind, exit_.address) == (ExitKind.PIO, ASK)


async def test_halt_without_an_interrupt_controller_is_reported(machines: Machines) -> None:
    machine = machines.make("hlt", split_irqchip=False)

    exit_ = await machine.start().next_exit()

    assert exit_.kind is ExitKind.HLT


async def test_answer_without_an_exit_is_refused(machines: Machines) -> None:
    machine = machines.make(HALT)

    with pytest.raises(InternalError, match="take one first"):
        machine.threads[0].answer(1)


async def test_affinity_is_the_one_asked_for(machines: Machines) -> None:
    machine = machines.make(SPIN)
    cpu = max(os.sched_getaffinity(0))

    with VcpuThread(machine.vcpus[0], machine.router, name="pinned", host_cpus=[cpu]) as thread:
        thread.start()
        await Driver(thread).next_exit()

        assert os.sched_getaffinity(thread.tid) == {cpu}


async def test_affinity_to_a_missing_cpu_is_refused_and_leaves_nothing(machines: Machines) -> None:
    machine = machines.make(SPIN)
    before = threads()

    with VcpuThread(machine.vcpus[0], machine.router, name="none", host_cpus=[60000]) as thread:
        with pytest.raises((HostError, ConfigError)):
            thread.start()

        assert thread.state is ThreadState.STOPPED
        assert threads() == before


async def test_only_the_kick_and_a_breach_of_its_own_can_reach_the_thread(
    machines: Machines,
) -> None:
    machine = machines.make(SPIN)
    await machine.start().asked()

    blocked = int(status(machine.threads[0], "status").split("SigBlk:")[1].split()[0], 16)

    # glibc keeps signals 32 and 33 to itself, and SIGKILL and SIGSTOP cannot be blocked. SIGSYS is
    # what a breach of its own filter raises.
    open_ = {n for n in range(1, 65) if not blocked >> (n - 1) & 1}
    assert open_ - {9, 19, 32, 33} == {signal.SIGSYS, 39}


def test_close_leaves_no_thread_and_no_descriptor(kvm: Kvm) -> None:
    gc.collect()
    before, open_before = threads(), descriptors()

    for source in (SPIN, HALT, TRIPLE_FAULT):
        with Machines(kvm) as machines:
            machines.make(source, vcpus=2).start()

    assert come_to(lambda: threads() == before)
    assert descriptors() == open_before


def test_vcpu_close_with_a_living_thread_is_refused(machines: Machines) -> None:
    machine = machines.make(SPIN)
    machine.start()

    with pytest.raises(InternalError, match="still has a thread"):
        machine.vcpus[0].close()


def test_second_thread_on_a_vcpu_is_refused(machines: Machines) -> None:
    machine = machines.make(SPIN)
    machine.start()

    with (
        VcpuThread(machine.vcpus[0], machine.router, name="second") as second,
        pytest.raises(InternalError),
    ):
        second.start()


def test_thread_forgotten_while_running_is_ended(kvm: Kvm) -> None:
    with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        forgotten = [VcpuThread(vcpu, ExitRouter(), name="forgotten")]
        forgotten[0].start()
        assert come_to(lambda: forgotten[0].tid != 0)
        tid = forgotten[0].tid

        with pytest.warns(ResourceWarning, match="Unclosed"):
            forgotten.clear()

        assert is_gone(tid)
