"""The back ends in memory that tests, and those of others, give to devices."""

from __future__ import annotations

import os

import trio.testing

from vmm.console import WindowSize
from vmm.net.offload import Offload
from vmm.testing.backends import MemoryConsole, MemoryTap, memory_image


async def test_console_gives_what_is_typed_and_keeps_what_is_written() -> None:
    console = MemoryConsole()

    await console.type.send(b"ls\n")
    waiting = console.waiting
    await console.write(b"bin etc\n")

    assert (waiting, await console.read(), console.written) == (1, b"ls\n", b"bin etc\n")


async def test_stalled_console_takes_the_text_and_does_not_return(nursery: trio.Nursery) -> None:
    console = MemoryConsole()
    console.is_stalled = True

    nursery.start_soon(console.write, b"late")
    await trio.testing.wait_all_tasks_blocked()

    assert console.written == b"late"


async def test_resized_console_tells_and_shows_the_size(nursery: trio.Nursery) -> None:
    console, told = MemoryConsole(), trio.Event()
    nursery.start_soon(console.watch_size, told.set)
    await trio.testing.wait_all_tasks_blocked()

    console.resize(50, 132)
    await told.wait()

    assert console.size == WindowSize(50, 132)


def test_tap_carries_packets_whole_and_closes_its_ends() -> None:
    before = os.listdir("/proc/self/fd")
    with MemoryTap(2) as tap:
        os.write(tap.fds[1], b"one")
        tap.wires[0].send(b"two")
        tap.set_offloads(Offload(0))
        tap.use_queues(1)

        assert (tap.wires[1].recv(99), os.read(tap.fds[0], 99)) == (b"one", b"two")
        assert (tap.offloads, tap.used) == ([Offload(0)], [1])
    assert os.listdir("/proc/self/fd") == before


def test_image_has_its_content_until_the_block_ends() -> None:
    with memory_image(b"boot") as path:
        assert path.read_bytes() == b"boot"
    with memory_image(1 << 20) as path:
        assert path.stat().st_size == 1 << 20
    assert not path.exists()
