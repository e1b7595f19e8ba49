"""A VMM whose system calls are filtered: each kind of its threads obeys, and dies of a breach."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kvm.guests import programs
from tests.kvm.guests.foreign_call import result_in, send_into
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import (
    SECONDS,
    SMALL,
    check_left_in_order,
    running,
    short_folder,
)
from vmm.kvm_cffi.system_calls import NUMBERS
from vmm.testing.process import VmmProcess, threads_of

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

OF_THE_KERNEL = ("kvm-", "iou-", "vhost-")
"""Workers that the kernel has in this process. They never leave it, and make no calls."""

PAGER_THREADS = ("pager", "pager-ask", "pager-fill")

PROGRAM_WITH_A_PAGER = """
import mmap, os, socket, sys
from vmm.kvm_cffi import address_of
from vmm.kvm_cffi.pager import Pager
from vmm.seccomp import filter_system_calls

filter_system_calls("true")
near, far = socket.socketpair()
with mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
    with Pager(os.open("/dev/null", os.O_RDONLY), 0) as pager:
        pager.ask(near.fileno())
        pager.mark(pager.add(address_of(memory), 1 << 20, 4096, 0), 0, 1 << 20)
        pager.start()
        far.recv(1)  # The filler has asked its peer, which says no more.
        print("started", flush=True)
        sys.stdin.read()
        pager.give_up()
"""


PROGRAM_WITH_A_FILTER_THAT_THE_KERNEL_REFUSES = """
import select
from tests.kvm.bare import Machines
from vmm.kvm_cffi import Kvm
from vmm.kvm_cffi._kvm import ffi, lib

no_program = bytes(8)
assert lib.vk_seccomp_declare(lib.VK_THREAD_VCPU, ffi.from_buffer(no_program), 8) == 0
with Kvm.open() as kvm, Machines(kvm) as machines:
    machine = machines.make("hlt")
    machine.start()
    (thread,) = machine.threads
    select.select([thread.event_fd], [], [])
    print(thread.take_exit().kind.name, thread.state.name, thread.exit_counts.kicks)
"""


def threads(pid: int) -> dict[str, int]:
    """The threads of a process by their names; the one that it began with is "main"."""
    found = threads_of(pid) | {pid: "main"}
    return {name: tid for tid, name in found.items() if not name.startswith(OF_THE_KERNEL)}


def status(tid: int) -> dict[str, str]:
    """What the kernel says of a thread."""
    lines = Path(f"/proc/{tid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def filters(tid: int) -> int:
    """How many programs a thread obeys."""
    said = status(tid)
    assert said["Seccomp"] == ("0" if said["Seccomp_filters"] == "0" else "2")
    assert said["Seccomp_filters"] == "0" or said["NoNewPrivs"] == "1"
    return int(said["Seccomp_filters"])


async def booted(vmm: VmmProcess) -> dict[str, int]:
    """Wait until the VM runs; the threads of its VMM, one that waits for calls among them."""
    await vmm.wait_for_state("Running", SECONDS)
    return threads(vmm.process.pid)


def arguments(place: Path, *more: str) -> tuple[str, ...]:
    return "--kernel", str(write_kernel(place, programs.HALT)), *SMALL, "--cpus", "boot=2", *more


async def test_vm_is_filtered_unless_it_is_told_otherwise(place: Path) -> None:
    async with running(place, *arguments(place)) as vmm:
        by_name = await booted(vmm)

        assert {name: filters(tid) for name, tid in by_name.items()} == {
            name: 2 if name.startswith("vcpu") else 1 for name in by_name
        }
        assert {"main", "vcpu0", "vcpu1"} < by_name.keys()
        assert await vmm.stop() == 0
        check_left_in_order(vmm)


async def test_mode_false_filters_nothing(place: Path) -> None:
    async with running(place, *arguments(place, "--seccomp", "false")) as vmm:
        assert {filters(tid) for tid in (await booted(vmm)).values()} == {0}


@pytest.mark.parametrize("kind", ["main", "worker", "vcpu1"])
async def test_breach_of_each_kind_of_thread_ends_the_process(place: Path, kind: str) -> None:
    async with running(place, *arguments(place)) as vmm:
        by_name = await booted(vmm)
        workers = {*by_name} - {"main", "vcpu0", "vcpu1"}
        tid = by_name[workers.pop() if kind == "worker" else kind]

        send_into(tid, NUMBERS["keyctl"])

        assert await vmm.wait(SECONDS) == -signal.SIGSYS
        said = f"Probable seccomp violation: system call {NUMBERS['keyctl']} (keyctl) at 0x"
        assert said in vmm.errors.decode()
        assert f" in thread {tid};" in vmm.errors.decode()


async def test_vcpu_may_not_even_open_a_file(place: Path) -> None:
    async with running(place, *arguments(place)) as vmm:
        send_into((await booted(vmm))["vcpu0"], NUMBERS["openat"])

        assert await vmm.wait(SECONDS) == -signal.SIGSYS
        assert f"system call {NUMBERS['openat']} (openat)" in vmm.errors.decode()


def test_vcpu_whose_thread_cannot_be_filtered_does_not_run() -> None:
    code = PROGRAM_WITH_A_FILTER_THAT_THE_KERNEL_REFUSES
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout == "RUN_ERROR PAUSED 0\n"


@pytest.mark.parametrize("kind", PAGER_THREADS)
def test_breach_of_a_thread_that_brings_memory_ends_the_process(kind: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM_WITH_A_PAGER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline() == "started\n", program.stderr.read()
        by_name = threads(program.pid)
        deadline = time.monotonic() + SECONDS
        while filters(by_name[kind]) == 1 and time.monotonic() < deadline:
            os.sched_yield()  # It may not have begun yet.
        assert (filters(by_name["main"]), filters(by_name[kind])) == (1, 2)

        send_into(by_name[kind], NUMBERS["openat"])

        assert program.wait(SECONDS) == -signal.SIGSYS
        assert f"system call {NUMBERS['openat']} (openat)" in program.stderr.read()


@pytest.mark.parametrize("mode", ["log", "errno"])
async def test_breach_in_a_milder_mode_ends_nothing(place: Path, mode: str) -> None:
    async with running(place, *arguments(place, "--seccomp", mode)) as vmm:
        by_name = await booted(vmm)
        assert (filters(by_name["main"]), filters(by_name["vcpu0"])) == (1, 2)

        results = {
            result_in(by_name["vcpu0"], NUMBERS["getpid"]),
            result_in(by_name["main"], NUMBERS["personality"]),
        }

        default_personality = 0
        expected = {vmm.process.pid, default_personality} if mode == "log" else {-errno.EPERM}
        assert results == expected
        assert (await vmm.info())["state"] == "Running"
        await vmm.put("vm.pause")
        await vmm.put("vm.resume")
        assert await vmm.stop() == 0
        check_left_in_order(vmm)
