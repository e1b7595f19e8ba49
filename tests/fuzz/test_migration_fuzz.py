"""No stream of bytes does more than fail the migration it came for: nothing raises but what says
whose fault it was, nothing stays open, and nothing is written but RAM."""

from __future__ import annotations

import array
import os
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm.boot.layout import RamRange
from vmm.config.vm import VmConfig
from vmm.errors import VmmError
from vmm.kvm_cffi.structs import CpuidEntry
from vmm.machine.brought_back import layout_of
from vmm.machine.memory import GuestMemory
from vmm.machine.zones import Zone
from vmm.migration.address import UnixAddress
from vmm.migration.destination import Arrival, listen
from vmm.migration.messages import Description
from vmm.migration.progress import Progress
from vmm.migration.protocol import Command, Request, Role, encode_role

PAGE = 4096
RAM = 16 * PAGE
ZONE = Zone("ram", RAM)
PATIENCE_S = 5.0
"""The fuzzer closes what it has opened, so nothing ever waits so long."""
FAULT_CONNECTION_S = 0.05
"""For a connection that need not come, a destination waits whatever becomes of the first."""

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, RAM, RAM - PAGE, PAGE]),
    st.integers(0, (1 << 64) - 1),
)
ENTRIES = st.tuples(
    st.one_of(st.sampled_from([0, PAGE, RAM - PAGE, RAM, RAM - 1]), NUMBERS),
    st.one_of(st.sampled_from([PAGE, 2 * PAGE, 1, RAM]), NUMBERS),
)
MEMORY = st.tuples(st.just("memory"), st.lists(ENTRIES, min_size=1, max_size=4))
HEADER = st.tuples(
    st.just("header"),
    st.integers(0, 12),
    st.sampled_from([0, 0, 1, 4, 16, 32, 1 << 20, 1 << 63]),
    st.one_of(st.just(bytes(6)), st.binary(min_size=6, max_size=6)),
)
PLAIN = st.sampled_from(
    [("start",), ("config",), ("config",), ("state",), ("complete",), ("paused",), ("abandon",)]
)
OTHER = st.one_of(
    st.tuples(st.just("bytes"), st.binary(max_size=64)),
    st.tuples(st.just("descriptors"), st.integers(0, 3)),
    st.tuples(st.just("json"), st.sampled_from([b"", b"{}", b"[]", b"[" * 2000, b"\xff\xfe"])),
    st.tuples(st.just("beside"), st.sampled_from([0, 1, 2, 3]), MEMORY),
)
ACTIONS = st.lists(st.one_of(PLAIN, MEMORY, MEMORY, HEADER, OTHER), max_size=12)


def description() -> bytes:
    with GuestMemory.open([ZONE], [RamRange(0, RAM)]) as memory:
        layout = layout_of(memory, 40)
    return Description(VmConfig(), (CpuidEntry(1),), layout).encode()


DESCRIPTION = description()


def encoded(command: Command, payload: bytes = b"") -> bytes:
    return struct.pack("<H6xQ", command, len(payload)) + payload


def memory_message(entries: list[tuple[int, int]]) -> bytes:
    table = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    size = sum(length for _, length in entries)
    return encoded(Command.MEMORY, table) + b"m" * min(size, RAM)


class Hostile:
    """A source that does as it is told."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open = ExitStack()
        self._main = self._connected()

    def _connected(self) -> socket.socket:
        sock = self._open.enter_context(socket.socket(socket.AF_UNIX))
        sock.connect(self._path)
        sock.setblocking(False)
        return sock

    def act(self, action: tuple[object, ...]) -> None:
        """Do one thing; a receiver that has gone away is not spoken to."""
        with suppress(OSError):
            self._act(action)

    def _act(self, action: tuple[object, ...]) -> None:
        match action:
            case ("start",):
                self._main.send(Request(Command.START).encode())
            case ("config",):
                self._main.send(encoded(Command.CONFIG, DESCRIPTION))
            case ("state",):
                self._main.send(encoded(Command.STATE, b"{}"))
            case ("complete",):
                self._main.send(encoded(Command.COMPLETE))
            case ("paused",):
                self._main.send(encoded(Command.COMPLETE_PAUSED))
            case ("abandon",):
                self._main.send(encoded(Command.ABANDON))
            case "memory", list(entries):
                self._main.send(memory_message(entries))
            case "header", int(number), int(length), bytes(reserved):
                self._main.send(struct.pack("<H6sQ", number, reserved, length))
            case "bytes", bytes(data):
                self._main.send(data)
            case "json", bytes(data):
                self._main.send(encoded(Command.CONFIG, data))
            case "descriptors", int(count):
                self._send_descriptors(count)
            case "beside", int(role), ("memory", list(entries)):
                sock = self._connected()
                sock.send(role.to_bytes(2, "little") + memory_message(entries))

    def _send_descriptors(self, count: int) -> None:
        fds = [os.memfd_create("fuzz", os.MFD_CLOEXEC) for _ in range(count)]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._main.send(struct.pack("<H6xQ", Command.MEMORY_FD, 4))
            self._main.sendmsg([bytes(4)], rights)
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """End all connections."""
        self._open.close()


@asynccontextmanager
async def arriving(*, is_postcopy: bool = False) -> AsyncIterator[tuple[Arrival, str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "m")
        async with listen(UnixAddress(path)) as listener:
            progress = Progress(is_incoming=True)
            arrival = Arrival(
                listener, progress, lambda _: None, PATIENCE_S, is_postcopy=is_postcopy
            )
            with arrival:
                yield arrival, path


async def take_in(arrival: Arrival, memory: GuestMemory) -> None:
    """Be a destination until the migration fails."""
    failed = False
    try:
        await arrival.meet()
        await arrival.provide(memory, None)  # type: ignore[arg-type]  # it is not used
        await arrival.completion()
    except* VmmError:
        failed = True
        await arrival.refuse()
    assert failed, "the state of no machine was taken for one"


def held() -> list[str]:
    """What a migration may have open: connections and memory."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}").partition(":")[0])
    return sorted(each for each in found if each in ("socket", "/memfd"))


async def attack(actions: Sequence[tuple[object, ...]], is_postcopy: bool = False) -> None:
    with GuestMemory.open([ZONE], [RamRange(0, RAM)]) as memory:
        async with arriving(is_postcopy=is_postcopy) as (arrival, path):
            hostile = Hostile(path)
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_act_all, hostile, actions)
                    await take_in(arrival, memory)
        assert set(memory.read(0, RAM)) <= set(b"m\0")


async def _act_all(hostile: Hostile, actions: Sequence[tuple[object, ...]]) -> None:
    for action in actions:
        hostile.act(action)
        await trio.testing.wait_all_tasks_blocked()
    hostile.close()


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ACTIONS)
def test_any_source_only_fails_its_migration(actions: list[tuple[object, ...]]) -> None:
    before = held()

    trio.run(attack, [("start",), ("config",), *actions])
    trio.run(attack, actions)

    assert held() == before


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ACTIONS)
def test_any_source_whose_memory_is_to_follow_only_fails_its_migration(
    actions: list[tuple[object, ...]],
) -> None:
    before = held()

    with patch("vmm.migration.destination.FAULT_CONNECTION_S", FAULT_CONNECTION_S):
        trio.run(attack, [("start",), ("config",), *actions], True)

    assert held() == before


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_only_fail_the_migration(data: bytes) -> None:
    trio.run(attack, [("bytes", data)])
    trio.run(attack, [("start",), ("config",), ("bytes", data)])


async def bring(
    hostile: Hostile, actions: Sequence[tuple[object, ...]], memory: GuestMemory
) -> None:
    """Do all, and go once the last page is there."""
    for action in actions:
        hostile.act(action)
        await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(60):
        while memory.read(2 * PAGE, PAGE) != b"m" * PAGE:  # noqa: ASYNC110
            await trio.sleep(0.01)  # Nothing tells from here that it has come.
    hostile.close()


def test_fuzzed_source_can_bring_memory_by_both_ways() -> None:
    async def run() -> None:
        with GuestMemory.open([ZONE], [RamRange(0, RAM)]) as memory:
            async with arriving() as (arrival, path):
                hostile = Hostile(path)
                role = int.from_bytes(encode_role(Role.MEMORY), "little")
                actions: list[tuple[object, ...]] = [
                    ("start",),
                    ("config",),
                    ("memory", [(0, PAGE)]),
                    ("beside", role, ("memory", [(2 * PAGE, PAGE)])),
                ]
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(bring, hostile, actions, memory)
                    await take_in(arrival, memory)
            assert memory.read(0, 4 * PAGE) == b"".join(bytes([each]) * PAGE for each in b"m\0m\0")

    trio.run(run)
