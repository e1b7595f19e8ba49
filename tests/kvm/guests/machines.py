"""Real VMs inside the test's own process, around tiny kernels."""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

import trio

from tests.kvm.guests.image import RESULTS, write_kernel
from vmm.config.vm import VmConfig
from vmm.machine.commands import Boot, Command, Create
from vmm.machine.consoles import Consoles, open_consoles
from vmm.machine.owner import VmOwner
from vmm.machine.virtual_machine import VirtualMachine
from vmm.machine.vm import open_machine

MIB = 1 << 20
RAM_BYTES = 64 * MIB
DEADLINE_S = 10
"""Guests are emulated at about a million instructions a second; none here needs a tenth of this."""


def configure(kernel: Path, **sections: object) -> VmConfig:
    """A configuration with a small RAM, a debug port, and nothing else unless it is asked for."""
    given: dict[str, object] = {
        "payload": {"kernel": str(kernel)},
        "memory": {"size": RAM_BYTES},
        "console": {"mode": "Off"},
        "debug_console": {"mode": "Null"},
    }
    return VmConfig.model_validate({**given, **sections})


def file_memory(path: Path, size: int = RAM_BYTES) -> dict[str, object]:
    """RAM that lies in a file, for a test to look into."""
    return {"size": 0, "zones": [{"id": "ram", "size": size, "file": str(path), "shared": True}]}


class Recorder:
    """A console's other side that keeps what the guest writes."""

    path = None
    size = None

    def __init__(self) -> None:
        self.output = bytearray()
        self._grown = trio.Event()

    async def write(self, data: bytes) -> None:
        """Keep it."""
        self.output += data
        self._grown.set()
        self._grown = trio.Event()

    async def read(self) -> NoReturn:
        """Wait for ever."""
        await trio.sleep_forever()

    async def wait_for(self, text: bytes, *, after: int = 0) -> int:
        """Wait for a text and return the position behind it."""
        with trio.fail_after(DEADLINE_S):
            while (at := self.output.find(text, after)) < 0:
                await self._grown.wait()
        return at + len(text)

    async def wait_for_bytes(self, count: int) -> bytes:
        """Wait until so much has been written, and return it."""
        with trio.fail_after(DEADLINE_S):
            while len(self.output) < count:
                await self._grown.wait()
        return bytes(self.output[:count])


class Wishes:
    """What a guest has asked of its owner."""

    def __init__(self) -> None:
        self.reset = trio.Event()
        self.shutdown = trio.Event()

    def request_reset(self) -> None:
        """Note it."""
        self.reset.set()

    def request_shutdown(self) -> None:
        """Note it."""
        self.shutdown.set()


class Running:
    """A machine that runs, what its guest has said and wished."""

    def __init__(self, machine: VirtualMachine, debug: Recorder, wishes: Wishes) -> None:
        self.machine = machine
        self.debug = debug
        self.wishes = wishes


@asynccontextmanager
async def running(config: VmConfig, events: Events | None = None) -> AsyncIterator[Running]:
    """Run a machine without an owner; its debug console is recorded."""
    debug, wishes = Recorder(), Wishes()
    consoles = Consoles(Recorder(), debug, Recorder())
    async with open_machine(config, consoles, wishes, events) as machine:
        yield Running(machine, debug, wishes)


class Events:
    """An event sink that keeps the names and can be waited on."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._grown = trio.Event()

    def emit(self, source: str, event: str, properties: Mapping[str, str] | None = None) -> None:
        """Keep it."""
        self.names.append(event)
        self._grown.set()
        self._grown = trio.Event()

    async def wait_for(self, name: str, *, times: int = 1) -> None:
        """Wait until an event has come as often."""
        with trio.fail_after(DEADLINE_S):
            while self.names.count(name) < times:
                await self._grown.wait()


class Owned:
    """A VM owner with real machines, and the events it gave."""

    def __init__(self, *, no_shutdown: bool = False) -> None:
        self.events = Events()
        self.ended = trio.Event()
        self.owner = VmOwner(
            events=self.events,
            open_consoles=open_consoles,
            open_machine=partial(open_machine, events=self.events),
            no_shutdown=no_shutdown,
        )

    async def run(self) -> None:
        """Serve until a command or the guest ends it."""
        await self.owner.run()
        self.ended.set()

    async def do(self, *commands: Command) -> None:
        """Have commands carried out."""
        with trio.fail_after(DEADLINE_S):
            for command in commands:
                await self.owner.submit(command)

    async def wait_until_ended(self) -> None:
        """Wait until it has ended by itself."""
        with trio.fail_after(DEADLINE_S):
            await self.ended.wait()


@asynccontextmanager
async def owned(
    config: VmConfig | None = None, *, no_shutdown: bool = False
) -> AsyncIterator[Owned]:
    """Run an owner, and boot a VM in it if a configuration is given."""
    held = Owned(no_shutdown=no_shutdown)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.run)
        if config is not None:
            await held.do(Create(config), Boot())
        yield held
        nursery.cancel_scope.cancel()


class SharedRam:
    """A guest's RAM in a file, seen from the test."""

    def __init__(self, folder: Path, size: int = RAM_BYTES) -> None:
        self.path = folder / "ram"
        with self.path.open("wb") as file:
            file.truncate(size)
        with self.path.open("r+b") as file:
            self._mapping = mmap.mmap(file.fileno(), size)

    def word(self, gpa: int = RESULTS) -> int:
        """Read four bytes as a number."""
        return int.from_bytes(self._mapping[gpa : gpa + 4], "little")

    def close(self) -> None:
        """Unmap it."""
        self._mapping.close()


Kernel = Callable[[str], Path]


def kernel_writer(folder: Path) -> Kernel:
    """A function from a source to its kernel's path."""
    return lambda source: write_kernel(folder, source)
