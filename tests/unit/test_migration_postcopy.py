"""RAM by request over a socket: what is touched, what follows, and a peer that fails or lies."""

from __future__ import annotations

import os
import random
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from vmm.boot.layout import RamRange
from vmm.errors import ConfigError, PeerError
from vmm.kvm_cffi.pager import FaultServer, PagerState
from vmm.machine.memory import GuestMemory
from vmm.machine.zones import Zone
from vmm.migration.address import UnixAddress
from vmm.migration.destination import listen
from vmm.migration.link import Link
from vmm.migration.postcopy import (
    FaultConnection,
    accept_faults,
    fetch_on_demand,
    serve_faults,
)
from vmm.migration.protocol import Role, encode_role
from vmm.testing.memory import FakeMemory

PAGE = 4096
GPA = 1 << 20
SIZE = 8 << 20
ZONE = Zone("ram", SIZE, thp=False)


class Through(Link):
    """A link that is served as one through TLS is, which goes through Python."""

    is_encrypted = True


KINDS = [Link, Through]


@contextmanager
def joined() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


def filled() -> FakeMemory:
    memory = FakeMemory((GPA, SIZE))
    memory.write(GPA, random.Random(9).randbytes(SIZE))
    return memory


@contextmanager
def fetching(far: socket.socket, zone: Zone = ZONE) -> Iterator[GuestMemory]:
    with GuestMemory.open([zone], [RamRange(GPA, SIZE)]) as memory:
        fetch_on_demand(FaultConnection(far.detach()), memory)
        yield memory


async def touched(memory: GuestMemory, at: int) -> bytes:
    """A page, touched by the kernel in a thread: the other side is in this process too, and whoever
    touches waits with all that he holds."""
    [region] = memory.regions
    fd = os.memfd_create("touched")
    try:
        with region.view[at : at + PAGE] as page:
            assert await trio.to_thread.run_sync(os.pwrite, fd, page, 0) == PAGE
        return os.pread(fd, PAGE, 0)
    finally:
        os.close(fd)


async def wait_for_end(memory: GuestMemory) -> PagerState:
    assert memory.pager is not None
    with trio.fail_after(20):
        await trio.lowlevel.wait_readable(memory.pager.event_fd)
    return memory.pager.progress.state


@pytest.mark.parametrize("kind", KINDS)
async def test_ram_is_what_it_was_when_touched_and_when_all_has_come(kind: type[Link]) -> None:
    source = filled()
    pages: list[int] = []
    with joined() as (near, far):
        link = kind(trio.socket.from_stdlib_socket(near))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_faults, link, source.map(), pages.append)
            with fetching(far) as memory:
                for page in (SIZE - PAGE, 5 * PAGE):
                    read = await touched(memory, page)
                    assert read == source.read(GPA + page, PAGE)
                assert await wait_for_end(memory) is PagerState.DONE
                assert memory.read(GPA, SIZE) == source.read(GPA, SIZE)
                assert memory.pager is not None
                memory.pager.close()
    assert sum(pages) == SIZE // PAGE


@pytest.mark.parametrize("shared", [False, True])
async def test_ram_in_a_file_that_holds_something_already_is_refused(shared: bool) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file, joined() as (_, far):
        file.write(b"old" * PAGE)
        file.flush()
        zone = ZONE._replace(file=file.name, shared=shared)

        with pytest.raises(ConfigError, match="memory_mode Precopy"), fetching(far, zone):
            pass


async def test_loss_of_the_source_is_told() -> None:
    with joined() as (near, far), fetching(far) as memory:
        near.close()

        assert await wait_for_end(memory) is PagerState.FAILED


async def test_memory_is_given_back_at_once_while_the_source_is_silent() -> None:
    with joined() as (_, far), fetching(far) as memory:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_refused, memory, 0)
            while not _faults(memory):
                await trio.lowlevel.checkpoint()
            began = time.monotonic()
            for at in range(SIZE // 2, SIZE, SIZE // 16):
                memory.discard(GPA + at, SIZE // 16)
            assert time.monotonic() - began < 5
            assert memory.read(GPA + SIZE // 2, PAGE) == bytes(PAGE)
            assert memory.pager is not None
            assert memory.pager.progress.bytes_left == SIZE // 2
            memory.pager.give_up()


async def test_what_is_given_back_meanwhile_is_zero_and_the_rest_what_it_was() -> None:
    source, dice, gone = filled(), random.Random(3), set[int]()

    async def touch(memory: GuestMemory, dice: random.Random) -> None:
        for _ in range(60):
            at = dice.randrange(SIZE // 2 // PAGE) * PAGE
            assert await touched(memory, at) == source.read(GPA + at, PAGE)

    with joined() as (near, far):
        link = Link(trio.socket.from_stdlib_socket(near))
        async with trio.open_nursery() as serving:
            serving.start_soon(serve_faults, link, source.map(), lambda _: None)
            with fetching(far) as memory:
                async with trio.open_nursery() as nursery:
                    for seed in range(4):
                        nursery.start_soon(touch, memory, random.Random(seed))
                    for _ in range(100):
                        first, count = dice.randrange(SIZE // 2, SIZE - 16 * PAGE) // PAGE, 16
                        memory.discard(GPA + first * PAGE, count * PAGE)
                        gone.update(range(first, first + count))
                        at = dice.choice(sorted(gone)) * PAGE
                        assert memory.read(GPA + at, PAGE) == bytes(PAGE)
                        await trio.lowlevel.checkpoint()
                assert await wait_for_end(memory) is PagerState.DONE
                for page in range(SIZE // PAGE):
                    now = memory.read(GPA + page * PAGE, PAGE)
                    before = source.read(GPA + page * PAGE, PAGE)
                    assert now == (bytes(PAGE) if page in gone else before), page
                assert memory.pager is not None
                memory.pager.close()


async def _refused(memory: GuestMemory, at: int) -> None:
    with pytest.raises(OSError, match="Bad address"):
        await touched(memory, at)


def _faults(memory: GuestMemory) -> int:
    return 0 if memory.pager is None else memory.pager.progress.faults


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack("<H6xQ", 2, PAGE),
        struct.pack("<H6xQ", 1, PAGE + 1),
        struct.pack("<H6xQ", 7, 0),
    ],
)
async def test_answer_that_is_none_is_told(answer: bytes) -> None:
    with joined() as (near, far), fetching(far) as memory:
        near.sendall(answer)

        assert await wait_for_end(memory) is PagerState.FAILED


def request(command: int, length: int, gpa: int, size: int) -> bytes:
    return struct.pack("<H6xQQQ", command, length, gpa, size)


NO_PAGES = [
    request(4, 16, GPA, PAGE),
    request(9, 17, GPA, PAGE),
    request(9, 16, GPA, PAGE)[:7] + b"\x01" + request(9, 16, GPA, PAGE)[8:],
    request(9, 16, 0, PAGE),
    request(9, 16, GPA + SIZE - PAGE, 2 * PAGE),
    request(9, 16, GPA, 0),
    request(9, 16, GPA, 1 << 40),
    request(9, 16, (1 << 64) - PAGE, 2 * PAGE),
]


@pytest.mark.parametrize("asked", NO_PAGES)
def test_request_for_what_is_no_page_is_refused_and_those_before_it_are_not(asked: bytes) -> None:
    source = filled()
    memory_map = source.map()
    with joined() as (near, far):
        server = FaultServer(near.fileno(), memory_map)
        far.sendall(request(9, 16, GPA, PAGE) + asked)

        with pytest.raises(PeerError, match="cannot be served"):
            server.serve()

        assert far.recv(16) == struct.pack("<H6xQ", 1, PAGE)


def test_request_is_answered_as_soon_as_it_is_whole() -> None:
    source = filled()
    memory_map = source.map()
    with joined() as (near, far):
        server = FaultServer(near.fileno(), memory_map)
        assert server.serve() == 0
        whole = request(9, 16, GPA + PAGE, PAGE)
        far.sendall(whole[:20])
        assert server.serve() == 0
        far.sendall(whole[20:] + whole)
        assert server.serve() == 2
        far.setblocking(True)
        answers = b""
        while len(answers) < 2 * (16 + PAGE):
            answers += far.recv(1 << 16)
        assert answers == 2 * (struct.pack("<H6xQ", 1, PAGE) + source.read(GPA + PAGE, PAGE))
        far.close()
        assert server.serve() is None


def test_answer_that_there_is_no_room_for_waits_for_that() -> None:
    source = filled()
    memory_map = source.map()
    with joined() as (near, far):
        server = FaultServer(near.fileno(), memory_map)
        far.sendall(request(9, 16, GPA, SIZE) + request(9, 16, GPA, PAGE))

        assert server.serve() == 0
        assert server.is_answering
        pages, answers = 0, b""
        while pages < 2:
            answers += far.recv(1 << 20)
            pages += server.serve() or 0
        assert not server.is_answering
        while len(answers) < 32 + SIZE + PAGE:
            answers += far.recv(1 << 20)

    assert answers[16 : 16 + SIZE] == source.read(GPA, SIZE)
    assert answers[-PAGE - 16 :] == struct.pack("<H6xQ", 1, PAGE) + source.read(GPA, PAGE)


async def test_peer_that_does_not_read_is_given_up_and_holds_no_thread() -> None:
    with joined() as (near, far):
        link = Link(trio.socket.from_stdlib_socket(near), 0.2)
        far.sendall(request(9, 16, GPA, SIZE))

        with trio.fail_after(20), pytest.raises(PeerError, match="send to"):
            await serve(link, filled())


async def serve(link: Link, source: FakeMemory) -> int:
    """Serve until the other side closes; how many pages."""
    pages: list[int] = []
    await serve_faults(link, source.map(), pages.append)
    return sum(pages)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", NO_PAGES)
async def test_request_for_what_is_no_page_is_refused(kind: type[Link], asked: bytes) -> None:
    with joined() as (near, far):
        link = kind(trio.socket.from_stdlib_socket(near))
        far.sendall(asked)

        with trio.fail_after(20), pytest.raises(PeerError):
            await serve(link, filled())


@pytest.mark.parametrize("kind", KINDS)
async def test_request_in_pieces_is_answered_once_it_is_whole(kind: type[Link]) -> None:
    source = filled()
    whole = request(9, 16, GPA + PAGE, PAGE)
    answer = struct.pack("<H6xQ", 1, PAGE) + source.read(GPA + PAGE, PAGE)
    with joined() as (near, far):
        link = kind(trio.socket.from_stdlib_socket(near))
        peer = trio.SocketStream(trio.socket.from_stdlib_socket(far))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask_in_pieces, peer, whole, answer)
            with trio.fail_after(20):
                assert await serve(link, source) == 3


async def _ask_in_pieces(peer: trio.SocketStream, whole: bytes, answer: bytes) -> None:
    await peer.send_all(whole[:20])
    await trio.testing.wait_all_tasks_blocked()
    await peer.send_all(whole[20:] + whole + whole[:1])
    answers = await _exactly(peer, 2 * len(answer))
    await peer.send_all(whole[1:])
    answers += await _exactly(peer, len(answer))
    assert answers == 3 * answer
    await peer.aclose()


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.receive_some(size - len(data))
    return data


@pytest.mark.parametrize("kind", KINDS)
async def test_page_larger_than_what_is_sent_at_once_comes_whole(kind: type[Link]) -> None:
    source = filled()
    with joined() as (near, far):
        link = kind(trio.socket.from_stdlib_socket(near))
        peer = trio.SocketStream(trio.socket.from_stdlib_socket(far))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, link, source)
            with trio.fail_after(20):
                await peer.send_all(request(9, 16, GPA, 2 << 20))
                assert await _exactly(peer, 16) == struct.pack("<H6xQ", 1, 2 << 20)
                assert await _exactly(peer, 2 << 20) == source.read(GPA, 2 << 20)
                await peer.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_destination_that_goes_before_it_has_its_answers_wants_no_more(
    kind: type[Link],
) -> None:
    source = filled()
    with joined() as (near, far):
        link = kind(trio.socket.from_stdlib_socket(near))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, link, source)
            far.sendall(16 * request(9, 16, GPA, 1 << 20))
            with trio.fail_after(20):
                await trio.lowlevel.wait_readable(far)
            far.close()


@pytest.mark.parametrize("words", [b"", b"\1", b"GET / HTTP/1.1"])
async def test_stranger_who_connects_first_is_let_go(tmp_path: Path, words: bytes) -> None:
    async with listen(UnixAddress(f"{tmp_path}/m")) as listener, trio.open_nursery() as nursery:
        accepted: list[FaultConnection] = []

        async def accept() -> None:
            accepted.append(await accept_faults(listener))

        nursery.start_soon(accept)
        async with await trio.open_unix_socket(f"{tmp_path}/m") as stranger:
            await stranger.send_all(words)
        async with await trio.open_unix_socket(f"{tmp_path}/m") as source:
            await source.send_all(encode_role(Role.FAULT))
            with trio.fail_after(20):
                while not accepted:
                    await trio.lowlevel.checkpoint()
            accepted[0].close()
