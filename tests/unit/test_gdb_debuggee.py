"""What a debugger does to a machine, on vCPUs and memory that only remember."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import pytest

from vmm.errors import ConfigError, GuestError
from vmm.gdb.debuggee import ACCESS, EXECUTE, WRITE, Debuggee, Stop, Watch
from vmm.kvm_cffi import Exit, ExitKind, constants
from vmm.kvm_cffi.structs import Fpu, Regs, Sregs
from vmm.machine.memory import GuestMemory
from vmm.machine.vcpus import Vcpus

ENABLE, STEP = constants.KVM_GUESTDBG_ENABLE, constants.KVM_GUESTDBG_SINGLESTEP
SOFTWARE, HARDWARE = constants.KVM_GUESTDBG_USE_SW_BP, constants.KVM_GUESTDBG_USE_HW_BP
RAM_BYTES = 1 << 16


class FakeVcpu:
    control = 0
    registers: Sequence[int] = ()
    debugregs = bytes(4 * 8) + (0xFFFF0FF4).to_bytes(8, "little") + bytes(11 * 8)
    """DR6 as the processor has it, with the third debug register's hit in it."""

    def set_guest_debug(self, control: int, debugregs: Sequence[int] = ()) -> None:
        assert all(0 <= register < 1 << 64 for register in debugregs)
        self.control, self.registers = control, tuple(debugregs)

    def get_debugregs(self) -> bytes:
        return self.debugregs

    def set_debugregs(self, debugregs: bytes) -> None:
        self.debugregs = debugregs

    def get_regs(self) -> Regs:
        return Regs()

    def get_sregs(self) -> Sregs:
        return Sregs()

    def get_fpu(self) -> Fpu:
        return Fpu()

    def set_regs(self, regs: Regs) -> None:
        assert 0 <= regs.rax < 1 << 64

    def set_sregs(self, sregs: Sregs) -> None: ...
    def set_fpu(self, fpu: Fpu) -> None: ...


class FakeVcpus:
    def __init__(self) -> None:
        self.made = {0: FakeVcpu(), 1: FakeVcpu()}
        self.present = [0, 1]
        self.let_run: object = ()
        self.is_paused = False
        self.debug_controls = 0

    def vcpu(self, index: int) -> FakeVcpu:
        return self.made[index]

    async def hold(self) -> None:
        self.let_run = ()

    def release(self, only: Iterable[int] | None = None) -> None:
        self.let_run = only


class FakeRam:
    def __init__(self) -> None:
        self.bytes = bytearray(RAM_BYTES)

    def read(self, gpa: int, size: int) -> bytes:
        if gpa + size > RAM_BYTES:
            raise GuestError("outside of RAM")
        return bytes(self.bytes[gpa : gpa + size])

    def write(self, gpa: int, data: bytes) -> None:
        self.bytes[gpa : gpa + len(data)] = data


class FakeLifecycle:
    def request_reset(self) -> None: ...
    def request_shutdown(self) -> None: ...


class Bench:
    def __init__(self) -> None:
        self.vcpus, self.ram = FakeVcpus(), FakeRam()
        vcpus, ram = cast("Vcpus", self.vcpus), cast("GuestMemory", self.ram)
        self.debuggee = Debuggee(vcpus, ram, FakeLifecycle())


def exit_of(exception: int, address: int = 0, dr6: int = 0) -> Exit:
    return Exit(ExitKind.DEBUG, 0, 0, False, exception, 0, (address, dr6))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_first_four_breakpoints_are_debug_registers_and_change_no_memory(bench: Bench) -> None:
    for address in (0x40, 0x10, 0x30, 0x20):
        bench.debuggee.break_at(address)

    bench.debuggee.go()

    for vcpu in bench.vcpus.made.values():
        assert vcpu.control == ENABLE | HARDWARE
        assert vcpu.registers == (0x10, 0x20, 0x30, 0x40, 0, 0, 0, 0x4AA)
    assert bench.ram.bytes == bytes(RAM_BYTES)
    assert bench.debuggee.stop_of(1, exit_of(1, dr6=0b10)) == Stop(1, "swbreak:;")


async def test_fifth_breakpoint_is_in_memory_while_the_guest_runs(bench: Bench) -> None:
    for address in range(0x10, 0x60, 0x10):
        bench.debuggee.break_at(address)
    bench.ram.write(0x50, b"\x90")

    bench.debuggee.go()
    assert bench.vcpus.made[0].control == ENABLE | HARDWARE | SOFTWARE
    assert bench.ram.read(0x50, 1) == b"\xcc"
    assert bench.debuggee.stop_of(0, exit_of(3, 0x50)) == Stop(0, "swbreak:;")

    await bench.debuggee.hold()
    assert bench.ram.read(0x50, 1) == b"\x90"


async def test_breakpoint_is_not_in_memory_while_the_guest_is_paused(bench: Bench) -> None:
    for address in range(0x10, 0x60, 0x10):
        bench.debuggee.break_at(address)
    bench.ram.write(0x50, b"\x90")
    bench.debuggee.go()

    bench.debuggee.uncover()
    assert bench.ram.read(0x50, 1) == b"\x90"
    bench.debuggee.cover()
    assert bench.ram.read(0x50, 1) == b"\xcc"

    # The debugger stops it, and lets it run on while it is paused.
    await bench.debuggee.hold()
    bench.debuggee.cover()
    assert bench.ram.read(0x50, 1) == b"\x90"
    bench.vcpus.is_paused = True
    bench.debuggee.go()
    assert bench.ram.read(0x50, 1) == b"\x90"
    bench.debuggee.cover()
    assert bench.ram.read(0x50, 1) == b"\xcc"


def test_int3_of_the_guest_is_given_back_to_it(bench: Bench) -> None:
    bench.debuggee.go()

    assert bench.debuggee.stop_of(1, exit_of(3, 0x77)) is None
    assert bench.vcpus.made[1].control == ENABLE | constants.KVM_GUESTDBG_INJECT_BP


@pytest.mark.parametrize(
    ("dr6", "after"),
    [
        (0xFFFF4FF0, 0xFFFF4FF0),  # a step that the guest makes
        (0xFFFF0FF0, 0xFFFF0FF0),  # INT1
        (0xFFFF0FF8, 0xFFFF0FF8),  # a debug register that is not the debugger's
    ],
)
def test_debug_exception_that_nobody_asked_for_is_the_guests(
    bench: Bench, dr6: int, after: int
) -> None:
    bench.debuggee.watch(Watch(0x40, WRITE, 1))
    bench.debuggee.go()

    assert bench.debuggee.stop_of(1, exit_of(1, dr6=dr6)) is None

    assert bench.vcpus.made[1].control == ENABLE | constants.KVM_GUESTDBG_INJECT_DB
    assert int.from_bytes(bench.vcpus.made[1].debugregs[32:40], "little") == after
    assert bench.debuggee.stop_of(1, exit_of(1, dr6=dr6 | 1)) == Stop(1, "watch:40;")


def test_interrupts_stay_out_of_a_step_where_kvm_can_do_that(bench: Bench) -> None:
    block = constants.KVM_GUESTDBG_BLOCKIRQ
    bench.vcpus.debug_controls = block | ENABLE

    bench.debuggee.go(step=0)

    controls = [vcpu.control for vcpu in bench.vcpus.made.values()]
    assert controls == [ENABLE | STEP | block, ENABLE]


def test_step_is_one_vcpus_and_the_others_stand(bench: Bench) -> None:
    bench.debuggee.go(step=1)

    assert [vcpu.control for vcpu in bench.vcpus.made.values()] == [ENABLE, ENABLE | STEP]
    assert bench.vcpus.let_run == (1,)
    assert bench.debuggee.stop_of(1, exit_of(1, dr6=1 << 14)) == Stop(1, "")
    assert bench.debuggee.stop_of(1, exit_of(1, dr6=0)) == Stop(1, "")


@pytest.mark.parametrize(
    ("watch", "dr7", "why"),
    [
        (Watch(0x40, EXECUTE, 1), 0x402, "hwbreak:;"),
        (Watch(0x40, WRITE, 1), 0x1_0402, "watch:40;"),
        (Watch(0x40, WRITE, 4), 0xD_0402, "watch:40;"),
        (Watch(0x40, ACCESS, 8), 0xB_0402, "awatch:40;"),
    ],
)
def test_watch_is_written_as_the_processor_has_it(
    bench: Bench, watch: Watch, dr7: int, why: str
) -> None:
    bench.debuggee.watch(watch)
    bench.debuggee.watch(watch)

    bench.debuggee.go()

    assert bench.vcpus.made[0].registers == (0x40, 0, 0, 0, 0, 0, 0, dr7)
    assert bench.debuggee.stop_of(0, exit_of(1, dr6=1)) == Stop(0, why)


def test_watch_that_no_register_can_be_is_refused(bench: Bench) -> None:
    for watch in (Watch(0x41, WRITE, 4), Watch(0x40, WRITE, 3)):
        with pytest.raises(ConfigError, match="1, 2, 4 or 8 aligned bytes"):
            bench.debuggee.watch(watch)
    for address in range(4):
        bench.debuggee.watch(Watch(address, WRITE, 1))
    with pytest.raises(ConfigError, match="There are 4 debug registers"):
        bench.debuggee.watch(Watch(9, WRITE, 1))


async def test_machine_that_is_let_go_has_nothing_of_the_debuggers(bench: Bench) -> None:
    bench.debuggee.break_at(0x10)
    bench.debuggee.watch(Watch(0x20, WRITE, 1))
    bench.debuggee.go()

    await bench.debuggee.let_go()

    assert [vcpu.control for vcpu in bench.vcpus.made.values()] == [0, 0]
    assert bench.vcpus.let_run is None
    bench.debuggee.go()
    assert bench.vcpus.made[0].control == ENABLE


def test_memory_is_read_up_to_its_end_and_written_whole_or_not(bench: Bench) -> None:
    bench.ram.bytes[-2:] = b"ab"
    at = RAM_BYTES - 2

    assert bench.debuggee.read_memory(0, at, 4096) == b"ab"
    with pytest.raises(GuestError):
        bench.debuggee.read_memory(0, RAM_BYTES, 1)
    with pytest.raises(GuestError):
        bench.debuggee.write_memory(0, at, b"xyz")
    assert bench.debuggee.read_memory(0, at, 2) == b"ab"
    bench.debuggee.write_memory(0, 0xFFE, b"across")
    assert bench.ram.read(0xFFE, 6) == b"across"
