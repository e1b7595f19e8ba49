"""What a debugger has of a machine: its vCPUs, their memory, and the places where they stop.

All vCPUs stop together. A breakpoint is a debug register as long as there is one left, as that
changes nothing of the guest's, and INT3 in its memory beyond that: there while the guest runs only,
so that whoever reads a guest's memory while it stands, be it for the debugger or paused, sees what
the guest has. Devices and clocks go on while the debugger has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.errors import ConfigError, GuestError
from vmm.gdb.paging import PAGE, translate
from vmm.gdb.registers import Values
from vmm.kvm_cffi import constants

if TYPE_CHECKING:
    from vmm.kvm_cffi import Exit, Vcpu
    from vmm.machine.bus import Lifecycle
    from vmm.machine.memory import GuestMemory
    from vmm.machine.vcpus import Vcpus

INT3: Final = b"\xcc"
BREAKPOINT: Final = 3
"""The exception of INT3; the other that stops a vCPU is 1, of steps and debug registers."""

DR6: Final = 32
"""Where it is in ``struct kvm_debugregs``: behind DR0 to DR3."""
DR6_HIT: Final = 0xF
DR6_CAUSES: Final = DR6_HIT | 0xE000
"""The bits that say why, and are set when they do; others are set when they do not."""

EXECUTE, WRITE, ACCESS = 0, 1, 3
LENGTHS: Final = {1: 0, 2: 1, 4: 3, 8: 2}
"""How DR7 writes them."""

DEBUG_REGISTERS: Final = 4
DR7_RESERVED: Final = 1 << 10


class Watch(NamedTuple):
    """A debug register: an address, which accesses stop, and of how many bytes."""

    address: int
    kind: int
    size: int


class Stop(NamedTuple):
    """A vCPU has stopped; ``why`` is as the protocol's stop replies have it, or empty."""

    vcpu: int
    why: str


class Debuggee:
    """A running machine in the hands of a debugger. Use it while all vCPUs stand, but ``hold``."""

    def __init__(self, vcpus: Vcpus, memory: GuestMemory, lifecycle: Lifecycle) -> None:
        self._vcpus = vcpus
        self._memory = memory
        self._lifecycle = lifecycle
        self._breakpoints: set[int] = set()
        self._watches: list[Watch] = []
        self._armed: list[Watch] = []
        self._in_memory: list[int] = []
        self._patched: list[tuple[int, bytes]] = []
        self.step: int | None = None
        """The vCPU that makes a step, or made it last; None when all ran."""
        self._runs = False
        self.hear: Callable[[int, Exit], None] = lambda vcpu, exit_: None
        """Who is told, at once, that a vCPU stopped by itself."""

    @property
    def vcpus(self) -> list[int]:
        """The vCPUs that there are."""
        return self._vcpus.present

    async def hold(self) -> None:
        """Stop all vCPUs, and take what was put into the memory out of it."""
        await self._vcpus.hold()
        self._runs = False
        self.uncover()

    def uncover(self) -> None:
        """Give the guest its own bytes where breakpoints are in its memory; its vCPUs stand."""
        while self._patched:
            self._memory.write(*self._patched.pop())

    def cover(self) -> None:
        """Put breakpoints where ``uncover`` took them away, if the guest is to run."""
        if self._runs:
            self._patch()

    def go(self, step: int | None = None) -> None:
        """Let all vCPUs run, or one of them make a step. Raises: HostError."""
        points = sorted(self._breakpoints)
        free = DEBUG_REGISTERS - len(self._watches)
        self._armed = [*self._watches, *(Watch(each, EXECUTE, 1) for each in points[:free])]
        self._in_memory = points[free:]
        self.step = step
        blocking = self._vcpus.debug_controls & constants.KVM_GUESTDBG_BLOCKIRQ
        for index in self.vcpus:
            control = constants.KVM_GUESTDBG_ENABLE
            if self._in_memory:
                control |= constants.KVM_GUESTDBG_USE_SW_BP
            if self._armed:
                control |= constants.KVM_GUESTDBG_USE_HW_BP
            if index == step:
                # Else a step may lead into the handler of an interrupt.
                control |= constants.KVM_GUESTDBG_SINGLESTEP | blocking
            self._vcpus.vcpu(index).set_guest_debug(control, self._debug_registers())
        self._runs = step is None
        if not self._vcpus.is_paused:
            self.cover()
        self._vcpus.release(None if step is None else (step,))

    async def let_go(self) -> None:
        """Forget the debugger, and let the guest run as without one. Raises: HostError."""
        await self.hold()
        self._breakpoints.clear()
        self._watches.clear()
        for index in self.vcpus:
            self._vcpus.vcpu(index).set_guest_debug(0)
        self._vcpus.release()

    def end(self) -> None:
        """Power the VM off."""
        self._lifecycle.request_shutdown()

    def stop_of(self, vcpu: int, exit_: Exit) -> Stop | None:
        """Say why a vCPU stopped; None for an exception of the guest's own, which it is given back.

        Raises: HostError.
        """
        address, dr6 = exit_.data
        if exit_.value == BREAKPOINT:
            if address in self._in_memory:
                return Stop(vcpu, "swbreak:;")
            self._give_back(vcpu, constants.KVM_GUESTDBG_INJECT_BP)
            return None
        for number, watch in enumerate(self._armed):
            if dr6 >> number & 1:
                return Stop(vcpu, self._name_of(watch))
        if vcpu == self.step:  # Not every nested KVM says in DR6 that it was one.
            return Stop(vcpu, "")
        self._tell_why(vcpu, dr6)
        self._give_back(vcpu, constants.KVM_GUESTDBG_INJECT_DB)
        return None

    def _give_back(self, vcpu: int, how: int) -> None:
        self._vcpu(vcpu).set_guest_debug(constants.KVM_GUESTDBG_ENABLE | how)

    def _tell_why(self, vcpu: int, dr6: int) -> None:
        """Have the guest's DR6 say what an exception is about, as the processor would have."""
        registers = bytearray(self._vcpu(vcpu).get_debugregs())
        before = int.from_bytes(registers[DR6 : DR6 + 8], "little")
        after = before & ~DR6_HIT | dr6 & DR6_CAUSES
        registers[DR6 : DR6 + 8] = after.to_bytes(8, "little")
        self._vcpu(vcpu).set_debugregs(bytes(registers))

    def _name_of(self, watch: Watch) -> str:
        if watch.kind == EXECUTE:
            return "hwbreak:;" if watch in self._watches else "swbreak:;"
        return f"{'watch' if watch.kind == WRITE else 'awatch'}:{watch.address:x};"

    def read_registers(self, vcpu: int) -> Values:
        """Give the register files of a vCPU. Raises: HostError."""
        held = self._vcpu(vcpu)
        return Values(held.get_regs(), held.get_sregs(), held.get_fpu())

    def write_registers(self, vcpu: int, values: Values) -> None:
        """Replace the register files of a vCPU. Raises: HostError."""
        held = self._vcpu(vcpu)
        held.set_regs(values.regs)
        held.set_sregs(values.sregs)
        held.set_fpu(values.fpu)

    def read_memory(self, vcpu: int, address: int, size: int) -> bytes:
        """Read where a vCPU's page tables lead, up to what is not mapped.

        Raises: GuestError when nothing is mapped at the first byte.
        """
        found = bytearray()
        while len(found) < size:
            part = min(size - len(found), PAGE - (address + len(found)) % PAGE)
            try:
                found += self._memory.read(self._place(vcpu, address + len(found)), part)
            except GuestError:
                if not found:
                    raise
                break
        return bytes(found)

    def write_memory(self, vcpu: int, address: int, data: bytes) -> None:
        """Write where a vCPU's page tables lead, all of it or nothing. Raises: GuestError."""
        pieces = []
        at = 0
        while at < len(data):
            part = min(len(data) - at, PAGE - (address + at) % PAGE)
            pieces.append((self._place(vcpu, address + at), data[at : at + part]))
            at += part
        for gpa, piece in pieces:
            self._memory.read(gpa, len(piece))
        for gpa, piece in pieces:
            self._memory.write(gpa, piece)

    def break_at(self, address: int) -> None:
        """Stop whoever executes an address."""
        self._breakpoints.add(address)

    def break_no_more_at(self, address: int) -> None:
        """Take such a place back."""
        self._breakpoints.discard(address)

    def watch(self, watch: Watch) -> None:
        """Stop by a debug register. Raises: ConfigError (caller) when there is none left for it."""
        if watch.size not in LENGTHS or watch.address % watch.size:
            raise ConfigError(f"A debug register watches 1, 2, 4 or 8 aligned bytes, not {watch}")
        if watch in self._watches:
            return
        if len(self._watches) == DEBUG_REGISTERS:
            raise ConfigError(f"There are {DEBUG_REGISTERS} debug registers; free one first")
        self._watches.append(watch)

    def watch_no_more(self, watch: Watch) -> None:
        """Free a debug register."""
        if watch in self._watches:
            self._watches.remove(watch)

    def _vcpu(self, index: int) -> Vcpu:
        return self._vcpus.vcpu(index)

    def _place(self, vcpu: int, address: int) -> int:
        found = translate(self._memory.read, self._vcpu(vcpu).get_sregs(), address)
        if found is None:
            raise GuestError(f"Nothing is mapped at {address:#x}")
        return found

    def _patch(self) -> None:
        """Put the breakpoints into the memory, as the first vCPU's page tables have it."""
        for address in self._in_memory if self.vcpus else ():
            try:
                gpa = self._place(self.vcpus[0], address)
                before = self._memory.read(gpa, 1)
            except GuestError:
                continue  # Not mapped yet: the guest cannot come there either.
            self._memory.write(gpa, INT3)
            self._patched.append((gpa, before))

    def _debug_registers(self) -> Sequence[int]:
        registers = [0] * 8
        registers[7] = DR7_RESERVED
        for number, (address, kind, size) in enumerate(self._armed):
            registers[number] = address
            registers[7] |= 2 << 2 * number
            registers[7] |= (kind | LENGTHS[size] << 2) << 16 + 4 * number
        return registers
