"""A vCPU that waits in the kernel for memory that never comes: no signal gets it out of KVM_RUN.

The machine runs in a process of its own, as that ends with it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

ROOT = Path(__file__).parents[2]
NO_PAGER = 77

PROGRAM = f"""
import mmap
import os
import sys
from pathlib import Path

import trio

from tests.kvm.bare import ASK, Machines
from vmm.errors import HostError
from vmm.kvm_cffi import Kvm, address_of
from vmm.kvm_cffi.pager import Pager
from vmm.machine import vcpu
from vmm.machine.bus import Bus

GPA, SIZE = 4 << 20, 1 << 20
vcpu.EXIT_DEADLINE_S = 0.5


class Port:
    def __init__(self) -> None:
        self.asked = trio.Event()

    def read(self, offset: int, size: int) -> int:
        self.asked.set()
        return 0


async def main(memory: mmap.mmap, machines: Machines) -> None:
    machine = machines.make(f"mov ${{ASK}}, %dx; in %dx, %al; mov {{GPA:#x}}, %eax; hlt")
    machine.vm.set_user_memory_region(1, GPA, SIZE, address_of(memory))
    (thread,) = machine.threads
    port, ports = Port(), Bus("port")
    ports.claim(ASK, 1, port)
    task = vcpu.VcpuTask(thread, 0, ports=ports, mmio=Bus("memory"), sink=None)
    async with trio.open_nursery() as nursery:
        await nursery.start(task.run)
        await port.asked.wait()
        waits_where = Path(f"/proc/self/task/{{thread.tid}}/wchan")
        while "userfault" not in waits_where.read_text():
            await trio.lowlevel.checkpoint()
        print("it is stuck", flush=True)
        nursery.cancel_scope.cancel()
    print("it has ended", flush=True)


fd = os.memfd_create("content")
os.truncate(fd, SIZE)
try:
    pager = Pager(fd, SIZE)
except HostError as error:
    print(error, file=sys.stderr)
    sys.exit({NO_PAGER})
# Nobody answers for what is touched of this memory: the pager is not started.
anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
with Kvm.open() as kvm, Machines(kvm) as machines, mmap.mmap(-1, SIZE, flags=anonymous) as memory:
    pager.add(address_of(memory), SIZE, 4096, 0)
    trio.run(main, memory, machines)
"""


def test_vcpu_that_does_not_leave_the_kernel_ends_the_process_and_not_the_loop_s_turns() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    if done.returncode == NO_PAGER:
        pytest.skip(f"userfaultfd cannot be used: {done.stderr.strip()}")

    assert (done.returncode, done.stdout) == (1, "it is stuck\n"), done.stderr
    assert "vCPU 0 has not left KVM" in done.stderr
