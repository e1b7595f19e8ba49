"""The mode Tty: a terminal that is shared with a shell and may go away."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from vmm.console import WindowSize
from vmm.console.terminal import TtyBackend, open_tty


@dataclass
class Terminal:
    """A terminal as a shell has it: the user's side, and one descriptor for in- and output."""

    user: int
    shell: int

    @property
    def modes(self) -> list[object]:
        modes: list[object] = termios.tcgetattr(self.shell)
        return modes

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.shell)[3] & (termios.ICANON | termios.ECHO)

    def close_user(self) -> None:
        os.close(self.user)
        self.user = -1


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    user, shell = os.openpty()
    termios.tcsetwinsize(shell, (24, 80))
    made = Terminal(user, shell)
    yield made
    if made.user >= 0:
        os.close(made.user)
    os.close(made.shell)


async def read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        await trio.lowlevel.wait_readable(fd)
        data += os.read(fd, count - len(data))
    return data


async def test_tty_bytes_pass_unchanged_in_both_directions(terminal: Terminal) -> None:
    every_byte = bytes(range(256))
    typed = b""
    with trio.fail_after(5):
        async with open_tty("serial", stdin=terminal.shell, stdout=terminal.shell) as tty:
            with trio.move_on_after(0):
                await tty.read()
            await tty.write(every_byte)
            shown = await read_exactly(terminal.user, 256)
            os.write(terminal.user, every_byte)
            while len(typed) < 256:
                typed += await tty.read()

    assert shown == every_byte
    assert typed == every_byte


async def test_tty_nobody_reads_leaves_the_keyboard_to_the_shell(terminal: Terminal) -> None:
    before = terminal.modes

    async with open_tty("serial", stdin=terminal.shell, stdout=terminal.shell) as tty:
        await tty.write(b"output only")
        during = terminal.modes

    assert during == before


async def read_until_cancelled(tty: TtyBackend, terminal: Terminal) -> bool:
    """Let the guest ask for input; tell whether the terminal is raw meanwhile."""
    with trio.move_on_after(0.02):
        await tty.read()
    return terminal.is_raw


async def test_tty_left_restores_the_modes(terminal: Terminal) -> None:
    before = terminal.modes

    async with open_tty("serial", stdin=terminal.shell, stdout=terminal.shell) as tty:
        was_raw = await read_until_cancelled(tty, terminal)

    assert was_raw
    assert terminal.modes == before


async def test_tty_error_restores_the_modes(terminal: Terminal) -> None:
    before = terminal.modes

    async def fail() -> None:
        async with open_tty("serial", stdin=terminal.shell, stdout=terminal.shell) as tty:
            assert await read_until_cancelled(tty, terminal)
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        await fail()

    assert caught.group_contains(ZeroDivisionError)
    assert terminal.modes == before


async def test_tty_cancellation_restores_the_modes_and_closes(terminal: Terminal) -> None:
    before = terminal.modes
    descriptors = os.listdir("/proc/self/fd")

    with trio.CancelScope() as scope:
        async with open_tty("serial", stdin=terminal.shell, stdout=terminal.shell) as tty:
            assert await read_until_cancelled(tty, terminal)
            scope.cancel()
            await tty.read()

    assert terminal.modes == before
    assert os.listdir("/proc/self/fd") == descriptors


async def test_tty_flags_shared_with_the_shell_stay_blocking(terminal: Terminal) -> None:
    async with open_tty("serial", stdin=terminal.shell, stdout=terminal.shell) as tty:
        await tty.write(b"output")
        flags = fcntl.fcntl(terminal.shell, fcntl.F_GETFL)

    assert not flags & os.O_NONBLOCK


async def test_tty_terminal_that_does_not_take_output_makes_the_writer_wait(
    terminal: Terminal,
) -> None:
    output = b"x" * (1 << 18)
    async with open_tty("serial", stdin=terminal.shell, stdout=terminal.shell) as tty:
        with trio.move_on_after(0.05) as scope:
            await tty.write(output)

    assert scope.cancelled_caught


async def test_tty_terminal_gone_drops_output_with_one_warning(
    terminal: Terminal, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(5):
        async with (
            open_tty("serial", stdin=terminal.shell, stdout=terminal.shell) as tty,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(tty.read)
            await trio.testing.wait_all_tasks_blocked()
            terminal.close_user()
            await tty.write(b"to nobody")
            await tty.write(b"again")
            nursery.cancel_scope.cancel()

    assert [record.getMessage() for record in caplog.records] == [
        "The serial cannot be written: Input/output error; its output is dropped until it can be",
        "The serial lost 14 bytes of output",
    ]


async def test_tty_terminal_gone_read_waits_for_ever_without_spinning(terminal: Terminal) -> None:
    async with open_tty("serial", stdin=terminal.shell, stdout=terminal.shell) as tty:
        assert await read_until_cancelled(tty, terminal)
        terminal.close_user()
        with trio.move_on_after(0.02) as first:
            await tty.read()
        with trio.move_on_after(0.02) as second:
            await tty.read()

    assert first.cancelled_caught
    assert second.cancelled_caught


async def test_tty_pipe_whose_reader_left_drops_output(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        async with open_tty("serial", stdin=writer, stdout=writer) as tty:
            await tty.write(b"lost")
    finally:
        os.close(writer)

    assert caplog.records[0].levelno == logging.WARNING
    assert "Broken pipe" in caplog.records[0].getMessage()


async def test_tty_output_into_a_file_continues_where_the_file_stood(tmp_path: Path) -> None:
    path = tmp_path / "log"
    stdout = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(stdout, b"before ")
    try:
        async with open_tty("serial", stdin=stdout, stdout=stdout) as tty:
            await tty.write(b"guest ")
            os.write(stdout, b"after")
    finally:
        os.close(stdout)

    assert path.read_bytes() == b"before guest after"


async def test_tty_output_into_a_socket_puts_its_flags_back() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with open_tty("serial", stdin=theirs.fileno(), stdout=theirs.fileno()) as tty:
            await tty.write(b"output")
            during = os.get_blocking(theirs.fileno())

        assert ours.recv(100) == b"output"
        assert (during, os.get_blocking(theirs.fileno())) == (False, True)


async def test_tty_size_is_that_of_the_terminal(terminal: Terminal) -> None:
    async with open_tty("serial", stdin=terminal.shell, stdout=terminal.shell) as tty:
        assert tty.size == WindowSize(24, 80)


IN_THE_BACKGROUND = """
import fcntl, os, signal, termios, trio
from vmm.console.terminal import open_tty

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
program = os.fork()
if program:
    # The shell: the terminal is its own, and the program in the background.
    status = os.waitpid(program, os.WUNTRACED)[1]
    if os.WIFSTOPPED(status):
        os.kill(program, signal.SIGKILL)
    os._exit(0 if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 else 1)
os.setpgid(0, 0)
before = termios.tcgetattr(0)

async def main():
    async with open_tty("serial") as tty:
        await tty.write(b"alive")
        with trio.move_on_after(0.05):
            await tty.read()
        assert termios.tcgetattr(0) == before
trio.run(main)
"""


def test_tty_in_the_background_is_neither_stopped_nor_made_raw(terminal: Terminal) -> None:
    shell = subprocess.run(
        [sys.executable, "-c", IN_THE_BACKGROUND],
        stdin=terminal.shell,
        stdout=terminal.shell,
        start_new_session=True,
        timeout=30,
        check=False,
    )

    assert shell.returncode == 0
    assert os.read(terminal.user, 100) == b"alive"


SENT_TO_THE_BACKGROUND = """
import fcntl, os, signal, termios, trio, trio.testing
from vmm.console.terminal import open_tty

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
before = termios.tcgetattr(0)
is_raw, is_taken = os.pipe(), os.pipe()
program = os.fork()
if program:
    # The shell: it lends the terminal, takes it back, and sees whether the program was stopped.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.setpgid(program, program)
    os.tcsetpgrp(0, program)
    os.read(is_raw[0], 1)
    os.tcsetpgrp(0, os.getpgrp())
    os.write(is_taken[1], b".")
    status = os.waitpid(program, os.WUNTRACED)[1]
    if os.WIFSTOPPED(status):
        os.kill(program, signal.SIGKILL)
    ended_well = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
    os._exit(0 if ended_well and termios.tcgetattr(0) == before else 1)

async def main():
    async with open_tty("serial") as tty, trio.open_nursery() as nursery:
        nursery.start_soon(tty.read)
        while termios.tcgetattr(0) == before:
            await trio.testing.wait_all_tasks_blocked(cushion=0.01)
        os.write(is_raw[1], b".")
        await trio.lowlevel.wait_readable(is_taken[0])
        await tty.write(b"ready")
        await trio.lowlevel.wait_readable(0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
trio.run(main)
"""


def test_tty_sent_to_the_background_lives_on_and_restores_the_modes(terminal: Terminal) -> None:
    shell = subprocess.Popen(
        [sys.executable, "-c", SENT_TO_THE_BACKGROUND],
        stdin=terminal.shell,
        stdout=terminal.shell,
        start_new_session=True,
    )
    shown = os.read(terminal.user, 100)
    os.write(terminal.user, b"for the shell")

    assert shell.wait(timeout=30) == 0
    assert shown == b"ready"
