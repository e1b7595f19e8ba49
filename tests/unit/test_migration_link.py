"""Guest memory through sockets, by one connection and by several, and what a lost one does."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import trio

from vmm.errors import PeerError
from vmm.kvm_cffi import PageSet, RangeTable
from vmm.migration.chunks import chunks
from vmm.migration.link import Link, RefusedError
from vmm.migration.progress import Progress
from vmm.migration.protocol import HEADER_BYTES, Command, Request, Response, Status
from vmm.migration.streams import Streams
from vmm.testing.memory import FakeMemory

PAGE = 4096
REGIONS = ((0, 8 << 20), (16 << 20, 1 << 20))


@contextmanager
def pair(patience_s: float = 10) -> Iterator[tuple[Link, Link]]:
    near, far = socket.socketpair()
    with near, far:
        for each in (near, far):
            each.setblocking(False)
        yield (
            Link(trio.socket.from_stdlib_socket(near), patience_s),
            Link(trio.socket.from_stdlib_socket(far), patience_s),
        )


def filled(seed: int) -> FakeMemory:
    memory = FakeMemory(*REGIONS)
    for gpa, size in REGIONS:
        memory.write(gpa, random.Random(seed + gpa).randbytes(size))
    return memory


def some_pages(seed: int) -> list[PageSet]:
    sets = [PageSet(gpa, size // PAGE) for gpa, size in REGIONS]
    for each in sets:
        each.bits[:] = random.Random(seed).randbytes(len(each.bits))
    return sets


async def take_in(link: Link, memory: FakeMemory) -> None:
    memory_map = memory.map()
    while (header := await link.receive_or_end(HEADER_BYTES)) is not None:
        request = Request.decode(header)
        table = RangeTable.decode(await link.receive(request.length))
        assert table.bytes_in(memory_map)
        await link.receive_memory(memory_map, table, lambda _: None)
        await link.respond(Status.OK)
    link.close()


@pytest.mark.parametrize("connections", [1, 4])
async def test_pages_arrive_where_they_were_and_no_others_change(connections: int) -> None:
    source, destination, before = filled(1), filled(2), filled(2)
    sets = some_pages(3)
    progress = Progress(is_incoming=False)
    with ExitStack() as stack, trio.fail_after(20):
        links = [stack.enter_context(pair()) for _ in range(connections)]
        near = [each for each, _ in links]
        async with trio.open_nursery() as nursery:
            for _, far in links:
                nursery.start_soon(take_in, far, destination)
            streams = Streams(near, source.map(), progress, trio.lowlevel.checkpoint)
            await streams.send(chunks(sets))
            for each in near:
                each.close()

    for pages in sets:
        bits = int.from_bytes(pages.bits, "little")
        for at in range(pages.pages):
            gpa = pages.gpa + PAGE * at
            wanted = source if bits >> at & 1 else before
            assert destination.read(gpa, PAGE) == wanted.read(gpa, PAGE)
    assert progress.transferred_bytes == PAGE * sum(map(len, sets))


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (8 << 20, PAGE),
        ((8 << 20) - PAGE, 2 * PAGE),
        (0, 0),
        (0, 1 << 63),
        ((1 << 64) - PAGE, 2 * PAGE),
        ((1 << 64) - 1, (1 << 64) - 1),
    ],
)
def test_range_that_is_not_ram_is_told_before_anything_moves(gpa: int, length: int) -> None:
    memory_map = FakeMemory(*REGIONS).map()
    entry = gpa.to_bytes(8, "little") + length.to_bytes(8, "little")
    good = bytes(8) + PAGE.to_bytes(8, "little")

    assert RangeTable.decode(good).bytes_in(memory_map) == PAGE
    assert RangeTable.decode(good + entry).bytes_in(memory_map) is None


async def test_peer_that_closes_in_the_middle_is_the_peers_fault() -> None:
    with pair() as (near, far):
        await far.send(b"half")
        far.close()
        with pytest.raises(PeerError, match="in the middle"):
            await near.receive(16)


async def test_memory_of_a_peer_that_closes_is_the_peers_fault() -> None:
    memory = FakeMemory(*REGIONS)
    memory_map = memory.map()
    table, _ = some_pages(1)[0].ranges(0, 100, 100)
    with pair() as (near, far):
        await far.send(bytes(PAGE))
        far.close()
        with pytest.raises(PeerError, match="reset"):
            await near.receive_memory(memory_map, table, lambda _: None)


async def test_peer_that_is_silent_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    with pair(patience_s=5) as (near, _):
        began = trio.current_time()
        with pytest.raises(PeerError, match="nothing moved for 5 s"):
            await near.receive(1)

        assert trio.current_time() - began == pytest.approx(5)


async def test_answers_are_read_strictly() -> None:
    request = Request(Command.STATE, 1)
    with pair() as (near, far):
        await far.respond(Status.OK)
        await near.expect_ok(request)
        await far.respond(Status.ERROR)
        with pytest.raises(RefusedError, match="refused STATE"):
            await near.expect_ok(request)
        await far.send(Response(Status.OK, 7).encode())
        with pytest.raises(PeerError, match="with 7 bytes"):
            await near.expect_ok(request)


async def test_descriptor_comes_with_its_bytes_or_is_refused() -> None:
    sent = os.memfd_create("slot")
    with pair() as (near, far):
        await near.send(b"slot", fd=sent)
        data, fd = await far.receive_with_fd(4)
        assert data == b"slot"
        assert os.fstat(fd).st_ino == os.fstat(sent).st_ino
        os.close(fd)
        os.close(sent)

        await near.send(b"slot")
        with pytest.raises(PeerError, match="brought 0 descriptors"):
            await far.receive_with_fd(4)


async def test_connection_that_is_gone_before_its_link_is_made_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0]:
        stream = await trio.open_tcp_stream(*listeners[0].socket.getsockname())
        monkeypatch.setattr("vmm.migration.link.KEEPALIVE_IDLE_S", 1 << 20)  # TCP takes no more.

        with pytest.raises(PeerError, match="is gone: Invalid argument"):
            Link(stream.socket)

        assert stream.socket.fileno() == -1
