"""The mode Pty: a slave that is opened, left and opened again."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import trio
import trio.testing

from vmm.console import Backend, WindowSize, open_backend
from vmm.console.outbox import KEPT_BYTES


@contextmanager
def opened(backend: Backend) -> Iterator[int]:
    assert backend.path is not None
    slave = os.open(backend.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        yield slave
    finally:
        os.close(slave)


async def read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        await trio.lowlevel.wait_readable(fd)
        data += os.read(fd, count - len(data))
    return data


async def test_pty_output_before_opening_reaches_who_opens() -> None:
    with trio.fail_after(10):
        async with open_backend("Pty", name="serial") as backend:
            await backend.write(b"early ")
            with opened(backend) as slave:
                received = await read_exactly(slave, 6)

    assert received == b"early "


async def test_pty_bytes_pass_unchanged_in_both_directions() -> None:
    every_byte = bytes(range(256))
    with trio.fail_after(10):
        async with open_backend("Pty", name="serial") as backend:
            with opened(backend) as slave:
                await backend.write(every_byte)
                received = await read_exactly(slave, 256)
                os.write(slave, every_byte)
                typed = b""
                while len(typed) < 256:
                    typed += await backend.read()

    assert received == every_byte
    assert typed == every_byte


async def test_pty_reader_that_leaves_is_followed_by_another() -> None:
    with trio.fail_after(10):
        async with open_backend("Pty", name="serial") as backend:
            with opened(backend) as slave:
                await backend.write(b"first")
                first = await read_exactly(slave, 5)
            await backend.write(b"between ")
            with opened(backend) as slave:
                await backend.write(b"second")
                second = await read_exactly(slave, 14)

    assert (first, second) == (b"first", b"between second")


async def test_pty_input_is_heard_from_a_second_opener_without_output() -> None:
    heard = []
    with trio.fail_after(10):
        async with open_backend("Pty", name="serial") as backend:
            for key in (b"1", b"2", b"3"):
                with opened(backend) as slave:
                    os.write(slave, key)
                    heard.append(await backend.read())

    assert heard == [b"1", b"2", b"3"]


async def test_pty_input_is_heard_again_after_the_device_saw_the_opener_leave() -> None:
    heard = b""

    with trio.fail_after(10):
        async with open_backend("Pty", name="serial") as backend:
            with opened(backend) as slave:
                os.write(slave, b"1")
                await backend.read()

            async def read_once() -> None:
                nonlocal heard
                heard = await backend.read()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_once)
                await trio.testing.wait_all_tasks_blocked()
                with opened(backend) as slave:
                    os.write(slave, b"2")
                    while not heard:
                        await trio.testing.wait_all_tasks_blocked(cushion=0.01)

    assert heard == b"2"


async def test_pty_much_output_after_the_opener_left_is_kept_for_the_next() -> None:
    output = b"0123456789abcdef" * (1 << 14)
    with trio.fail_after(10):
        async with open_backend("Pty", name="serial") as backend:
            with opened(backend) as slave:
                await backend.write(b"first")
                await read_exactly(slave, 5)
            await backend.write(output)
            with opened(backend) as slave:
                received = await read_exactly(slave, len(output))

    assert received == output


async def test_pty_nobody_there_keeps_only_the_newest_output() -> None:
    total = 2 * KEPT_BYTES
    output = b"".join(b"%07d\n" % at for at in range(total // 8))
    with trio.fail_after(20):
        async with open_backend("Pty", name="serial") as backend:
            await backend.write(output[:-8])
            await backend.write(output[-8:])
            with opened(backend) as slave:
                received = await read_exactly(slave, KEPT_BYTES)

    assert received == output[-KEPT_BYTES:]


async def test_pty_opener_that_does_not_read_leaves_without_blocking_for_ever() -> None:
    with trio.fail_after(10):
        async with (
            open_backend("Pty", name="serial") as backend,
            trio.open_nursery() as nursery,
        ):
            with opened(backend) as slave:
                nursery.start_soon(backend.write, b"x" * (1 << 18))
                await trio.lowlevel.wait_readable(slave)


async def test_pty_size_follows_the_terminal_program() -> None:
    async with open_backend("Pty", name="serial") as backend:
        before = backend.size
        with opened(backend) as slave:
            termios.tcsetwinsize(slave, (50, 132))
            after = backend.size

    assert (before, after) == (None, WindowSize(50, 132))


async def test_pty_left_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")

    with trio.CancelScope() as scope:
        async with open_backend("Pty", name="serial"):
            scope.cancel()
            await trio.sleep_forever()

    assert os.listdir("/proc/self/fd") == before
