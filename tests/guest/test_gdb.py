"""A stock kernel in a debugger's hands: breakpoints in its code, steps, and watched memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, booted
from tools.images.kernels import Kernel
from vmm.gdb.packets import Decoder, encode

pytestmark = pytest.mark.guest

RIP = 16
SYSCALL = "__x64_sys_sethostname"


class Debugger:
    """The debugger's side of a connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._decoder = Decoder()
        self._packets: list[str] = []

    async def close(self) -> None:
        await self._stream.aclose()

    async def send(self, packet: str) -> None:
        await self._stream.send_all(encode(packet.encode()))

    async def interrupt(self) -> str:
        await self._stream.send_all(b"\x03")
        return await self.hear()

    async def ask(self, packet: str) -> str:
        await self.send(packet)
        return await self.hear()

    async def hear(self) -> str:
        with trio.fail_after(BOOT_S):
            while not self._packets:
                data = await self._stream.receive_some()
                assert data, "the VMM closed the connection"
                for each in self._decoder.feed(bytes(data)):
                    if isinstance(each, bytes):
                        self._packets.append(each.decode("latin-1"))
        return self._packets.pop(0)


async def test_kernel_is_stopped_stepped_and_watched_and_goes_on(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    socket, connected = place / "gdb", trio.Event()
    found: list[Debugger] = []

    async def come() -> None:
        while not socket.exists():  # noqa: ASYNC110  a file has no event
            await trio.sleep(0.05)
        stream = await trio.open_unix_socket(str(socket))
        found.append(Debugger(stream))
        await found[0].send("c")
        connected.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        options = ("--gdb", f"path={socket}", "--cpus", "boot=2")
        async with booted(place, linux, minimal, *options) as guest:
            await connected.wait()
            debugger = found[0]
            symbols = await guest.run(f"grep -E ' ({SYSCALL}|jiffies_64)$' /proc/kallsyms")
            places = {line.split()[2]: int(line.split()[0], 16) for line in symbols.splitlines()}
            code, data = places[SYSCALL], places["jiffies_64"]

            assert (await debugger.interrupt()).startswith("T02")
            assert await debugger.ask("qfThreadInfo") == "m1,2"
            before = await debugger.ask(f"m{code:x},4")
            assert await debugger.ask(f"Z0,{code:x},1") == "OK"
            await debugger.send("c")
            await guest.console.type("hostname debugged\n")
            stop = await debugger.hear()
            assert stop.startswith("T05swbreak:;thread:"), stop
            thread = stop.rpartition(":")[2].rstrip(";")
            assert await debugger.ask(f"p{RIP:x}") == code.to_bytes(8, "little").hex()
            assert await debugger.ask(f"m{code:x},4") == before

            assert await debugger.ask(f"z0,{code:x},1") == "OK"
            assert (await debugger.ask(f"vCont;s:{thread}")).startswith("T05")
            assert await debugger.ask(f"p{RIP:x}") != code.to_bytes(8, "little").hex()

            assert await debugger.ask(f"Z2,{data:x},8") == "OK"
            assert (await debugger.ask("vCont;c")).startswith(f"T05watch:{data:x};")
            assert await debugger.ask(f"z2,{data:x},8") == "OK"
            assert await debugger.ask("D") == "OK"
            assert await guest.run("hostname") == "debugged\n"
            await debugger.close()
