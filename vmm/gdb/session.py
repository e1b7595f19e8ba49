"""One debugger's session: its packets, and what the machine answers.

Source: Debugging with GDB, appendix "gdb Remote Serial Protocol". All-stop mode; a thread is a
vCPU, numbered from 1.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Final

import trio

from vmm.errors import ConfigError, GuestError, HostError, VmmError
from vmm.gdb.debuggee import ACCESS, EXECUTE, WRITE, Watch
from vmm.gdb.packets import MOST_BYTES, Damaged, Decoder, Signal, encode
from vmm.gdb.registers import REGISTERS, description, read, write

if TYPE_CHECKING:
    from vmm.gdb.debuggee import Debuggee, Stop
    from vmm.kvm_cffi import Exit

READ_BYTES: Final = 1 << 14
MOST_MEMORY: Final = 1 << 14
"""Bytes of memory that one packet asks for, each two digits of the answer."""
MOST_WAITING: Final = 64
"""Packets that wait to be obeyed; the debugger is not read meanwhile."""
SEND_PATIENCE_S: Final = 30.0
"""How long a debugger may take to read an answer, before it counts as gone."""
ALL_BYTES: Final = sum(each.size for each in REGISTERS)

OK, UNKNOWN, FAULT, FAILED = "OK", "", "E0e", "E01"
SUPPORTED: Final = (
    f"PacketSize={MOST_BYTES:x};qXfer:features:read+;swbreak+;hwbreak+;vContSupported+;"
    "QStartNoAckMode+"
)
KINDS: Final = {1: EXECUTE, 2: WRITE, 3: ACCESS, 4: ACCESS}
"""Of a Z packet's type, what a debug register looks for; it cannot look for reads alone."""


class Ended(Enum):
    """Why a session ends."""

    DETACHED = "detached"
    CLOSED = "closed"
    MACHINE_GONE = "machine gone"


class Session:
    """Serves one connection, for as long as that and the machine are there.

    ``said`` is what has been read of it already.
    """

    def __init__(self, stream: trio.abc.Stream, debuggee: Debuggee, said: bytes = b"") -> None:
        self._stream = stream
        self._said = said
        self._debuggee = debuggee
        self._send, self._receive = trio.open_memory_channel[
            bytes | Signal | Damaged | tuple[int, "Exit"] | Ended
        ](float("inf"))
        self._waiting = trio.Semaphore(MOST_WAITING)
        self._is_running = False
        self._acknowledges = True
        self._is_deaf = False
        self._vcpu = 0
        self._last = b""
        self._answers: dict[str, Callable[[str], str]] = {
            "?": lambda _: self._stop_reply("", signal.SIGTRAP),
            "g": lambda _: self._read_all(),
            "G": self._write_all,
            "p": self._read_one,
            "P": self._write_one,
            "m": self._read_memory,
            "M": self._write_memory,
            "Z": self._set_point,
            "z": self._clear_point,
            "H": self._choose,
            "T": lambda rest: OK if self._thread(rest) in debuggee.vcpus else FAILED,
            "q": self._query,
            "Q": self._set_mode,
        }

    async def run(self) -> Ended:
        """Serve until the debugger leaves or the machine goes. Raises: HostError.

        Cancel: the guest stays as it is.
        """
        self._debuggee.hear = lambda vcpu, exit_: self._send.send_nowait((vcpu, exit_))
        await self._debuggee.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read)
            try:
                ended = await self._serve()
            except VmmError:
                await self._debuggee.let_go()
                raise
            nursery.cancel_scope.cancel()
        if ended is not Ended.MACHINE_GONE:
            await self._debuggee.let_go()
        return ended

    def machine_is_gone(self) -> None:
        """Have the session end: its machine does."""
        self._send.send_nowait(Ended.MACHINE_GONE)

    async def _read(self) -> None:
        decoder = Decoder()
        try:
            while data := self._said or await self._stream.receive_some(READ_BYTES):
                self._said = b""
                for each in decoder.feed(bytes(data)):
                    await self._waiting.acquire()
                    self._send.send_nowait(each)
        except trio.BrokenResourceError:
            pass
        self._send.send_nowait(Ended.CLOSED)

    async def _serve(self) -> Ended:
        """Take what the debugger sends and what the machine tells, one after the other."""
        async for event in self._receive:
            if isinstance(event, bytes | Signal | Damaged):
                self._waiting.release()
            match event:
                case Ended.MACHINE_GONE:
                    await self._say("W00")
                    return event
                case Ended():
                    return event
                case Signal.INTERRUPT if self._is_running:
                    await self._stand()
                    await self._say(self._stop_reply("", signal.SIGINT))
                case Signal.NAK:
                    await self._write(self._last)
                case Damaged() if self._acknowledges:
                    await self._write(b"-")
                case Signal() | Damaged():
                    pass
                case bytes():
                    if self._acknowledges:
                        await self._write(b"+")
                    if await self._obey(event.decode("latin-1")):
                        return Ended.DETACHED
                case vcpu, exit_ if self._is_running:
                    await self._tell_stop(vcpu, exit_)
        return Ended.CLOSED

    async def _tell_stop(self, vcpu: int, exit_: Exit) -> None:
        await self._stand()
        stop: Stop | None = self._debuggee.stop_of(vcpu, exit_)
        if stop is None:
            self._go(self._debuggee.step)
            return
        self._vcpu = vcpu
        await self._say(self._stop_reply(stop.why, signal.SIGTRAP))

    async def _obey(self, packet: str) -> bool:
        """Carry a packet out; True when it is the last.

        While the guest runs only those that end it are heard: a vCPU inside KVM_RUN answers nobody,
        and whoever asks it waits.
        """
        is_last = packet[:1] in ("D", "k") or packet.startswith("vKill")
        if self._is_running and not is_last:
            return False
        if packet[:1] in ("c", "C", "s", "S") or packet.startswith("vCont;"):
            self._go_on(packet)
        elif packet[:1] == "D":
            await self._say(OK)
            return True
        elif packet == "k" or packet.startswith("vKill"):
            self._debuggee.end()
            await self._say(OK)
            return True
        else:
            await self._say(self._answer(packet))
        return False

    def _answer(self, packet: str) -> str:
        if packet == "vCont?":
            return "vCont;c;C;s;S"
        make = self._answers.get(packet[:1])
        if make is None:
            return UNKNOWN
        try:
            return make(packet[1:])
        except GuestError:
            return FAULT
        except (HostError, ConfigError, ValueError, IndexError, KeyError):
            return FAILED

    def _go_on(self, packet: str) -> None:
        """Run, or step: of what vCont wants of each thread, a step goes before the rest."""
        actions = packet.split(";")[1:] if packet.startswith("vCont;") else [packet[:1]]
        for action in actions:
            kind, _, thread = action.partition(":")
            if kind[:1] in ("s", "S"):
                chosen = self._thread(thread) if thread else self._vcpu
                self._go(chosen if chosen in self._debuggee.vcpus else self._vcpu)
                return
        self._go()

    def _go(self, step: int | None = None) -> None:
        self._is_running = True
        try:
            self._debuggee.go(step)
        except VmmError:
            self._debuggee.go()

    async def _stand(self) -> None:
        await self._debuggee.hold()
        self._is_running = False

    def _stop_reply(self, why: str, number: int) -> str:
        present = self._debuggee.vcpus
        if present and self._vcpu not in present:  # A machine that ends has none.
            self._vcpu = present[0]
        return f"T{number:02x}{why}thread:{self._vcpu + 1:x};"

    def _read_all(self) -> str:
        values = self._debuggee.read_registers(self._vcpu)
        return "".join(read(values, each).hex() for each in REGISTERS)

    def _write_all(self, rest: str) -> str:
        values, data = self._debuggee.read_registers(self._vcpu), bytes.fromhex(rest)
        if len(data) != ALL_BYTES:
            return FAILED
        for register in REGISTERS:
            values = write(values, register, data[: register.size]) or values
            data = data[register.size :]
        self._debuggee.write_registers(self._vcpu, values)
        return OK

    def _read_one(self, rest: str) -> str:
        values = self._debuggee.read_registers(self._vcpu)
        return read(values, REGISTERS[int(rest, 16)]).hex()

    def _write_one(self, rest: str) -> str:
        number, _, digits = rest.partition("=")
        register, data = REGISTERS[int(number, 16)], bytes.fromhex(digits)
        values = write(self._debuggee.read_registers(self._vcpu), register, data)
        if values is None or len(data) != register.size:
            return FAILED
        self._debuggee.write_registers(self._vcpu, values)
        return OK

    def _read_memory(self, rest: str) -> str:
        address, size = (int(digits, 16) for digits in rest.split(","))
        return self._debuggee.read_memory(self._vcpu, address, min(size, MOST_MEMORY)).hex()

    def _write_memory(self, rest: str) -> str:
        place, _, digits = rest.partition(":")
        self._debuggee.write_memory(
            self._vcpu, int(place.partition(",")[0], 16), bytes.fromhex(digits)
        )
        return OK

    def _set_point(self, rest: str) -> str:
        kind, address, size = (int(digits, 16) for digits in rest.split(";")[0].split(","))
        if not 0 <= address < 1 << 64:
            return FAILED
        if kind == 0:
            self._debuggee.read_memory(self._vcpu, address, 1)
            self._debuggee.break_at(address)
        else:
            self._debuggee.watch(_watch(kind, address, size))
        return OK

    def _clear_point(self, rest: str) -> str:
        kind, address, size = (int(digits, 16) for digits in rest.split(","))
        if kind == 0:
            self._debuggee.break_no_more_at(address)
        else:
            self._debuggee.watch_no_more(_watch(kind, address, size))
        return OK

    def _choose(self, rest: str) -> str:
        if rest[:1] == "g" and rest[1:] not in ("0", "-1"):
            chosen = self._thread(rest[1:])
            if chosen not in self._debuggee.vcpus:
                return FAILED
            self._vcpu = chosen
        return OK

    def _thread(self, digits: str) -> int:
        """The vCPU of a thread's number; one that is no number is no vCPU's."""
        try:
            return int(digits, 16) - 1
        except ValueError:
            return -1

    def _query(self, rest: str) -> str:
        name, _, argument = rest.partition(":")
        match name:
            case "Supported":
                return SUPPORTED
            case "Attached":
                return "1"
            case "C":
                return f"QC{self._vcpu + 1:x}"
            case "fThreadInfo":
                return "m" + ",".join(f"{index + 1:x}" for index in self._debuggee.vcpus)
            case "sThreadInfo":
                return "l"
            case "Xfer" if argument.startswith("features:read:target.xml:"):
                return _part(description(), argument.rpartition(":")[2])
        if rest.startswith("ThreadExtraInfo,"):
            return f"vCPU {self._thread(rest.partition(',')[2])}".encode().hex()
        return UNKNOWN

    def _set_mode(self, rest: str) -> str:
        if rest != "StartNoAckMode":
            return UNKNOWN
        self._acknowledges = False
        return OK

    async def _say(self, answer: str) -> None:
        self._last = encode(answer.encode("latin-1"))
        await self._write(self._last)

    async def _write(self, data: bytes) -> None:
        if self._is_deaf:
            return
        with trio.move_on_after(SEND_PATIENCE_S), suppress(trio.BrokenResourceError):
            await self._stream.send_all(data)
            return
        self._is_deaf = True
        self._send.send_nowait(Ended.CLOSED)


def _watch(kind: int, address: int, size: int) -> Watch:
    return Watch(address, KINDS[kind], 1 if kind == 1 else size)


def _part(text: str, place: str) -> str:
    start, size = (int(digits, 16) for digits in place.split(","))
    part = text[start : start + size]
    return f"{'m' if start + len(part) < len(text) else 'l'}{part}"
