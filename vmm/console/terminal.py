"""The back end of mode Tty: this process's own standard output and, if a terminal, standard input.

The terminal is shared with the shell that started the program, and so are the flags of the open
file descriptions behind descriptors 0 and 1. So both are opened anew, which gives non-blocking
descriptors that nobody else sees; only what cannot be opened anew (a socket, another user's
terminal) is made non-blocking in place, and put back.

The terminal becomes raw when the guest first takes input, in the foreground only, and gets its
modes back when the back end is left: a console that no device reads leaves the keyboard alone.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, NoReturn

import trio

from vmm.console.backend import WindowSize
from vmm.console.output import DescriptorOutput, serve_output
from vmm.errors import HostError, InternalError

STDIN = 0
STDOUT = 1
READ_BYTES = 4096
FOREGROUND_POLL_SECONDS = 0.25


class TtyBackend:
    """A console on the standard streams."""

    path = None

    def __init__(self, output: DescriptorOutput, stdout: int, keyboard: Keyboard | None) -> None:
        self._output = output
        self._stdout = stdout
        self._keyboard = keyboard

    @property
    def size(self) -> WindowSize | None:
        """The size of the terminal behind standard output."""
        return window_size(self._stdout)

    async def write(self, data: bytes) -> None:
        """Write to standard output; dropped once the terminal or the pipe's reader is gone."""
        await self._output.write(data)

    async def read(self) -> bytes:
        """Wait for keys; for ever once the terminal is gone, and where there is none."""
        if self._keyboard is None:
            await trio.sleep_forever()
        keys = await self._keyboard.read()
        if not keys:
            self._keyboard = None
            await trio.sleep_forever()
        return keys

    async def watch_size(self, changed: Callable[[], None]) -> NoReturn:
        """Listen for the signal that a terminal sends to who has it in the foreground."""
        with trio.open_signal_receiver(signal.SIGWINCH) as signals:
            async for _ in signals:
                changed()
        raise InternalError("Trio's signals came to an end")


class Keyboard:
    """The input side of a terminal that the guest may borrow from a shell."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lent = termios.tcgetattr(fd)
        self._set: list[Any] | None = None
        self._is_raw = False

    async def read(self) -> bytes:
        """Wait for keys while in the foreground; nothing when the terminal is gone."""
        while True:
            await self._take_foreground()
            await trio.lowlevel.wait_readable(self._fd)
            try:
                with _job_control_held():
                    return os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                # In the background a read fails too, and then the terminal is not gone.
                if _is_foreground(self._fd):
                    return b""

    def restore(self) -> None:
        """Give the terminal back as it was lent. One that is gone needs nothing.

        In the background its modes are the shell's by now, unless they are still the ones set here.
        """
        if self._set is not None:
            with suppress(termios.error), _job_control_held():
                if _is_foreground(self._fd) or termios.tcgetattr(self._fd) == self._set:
                    termios.tcsetattr(self._fd, termios.TCSANOW, self._lent)

    async def _take_foreground(self) -> None:
        """Wait until the keyboard is ours, and see to it that it is raw."""
        while not _is_foreground(self._fd):
            # The shell has the terminal and sets its modes; on our return they must be set again.
            self._is_raw = False
            await trio.sleep(FOREGROUND_POLL_SECONDS)
        if not self._is_raw:
            self._is_raw = True
            with suppress(termios.error), _job_control_held():
                make_raw(self._fd)
                self._set = termios.tcgetattr(self._fd)


def make_raw(fd: int) -> None:
    """Pass every byte of a terminal through unchanged, both ways, without echo.

    Raises: termios.error when it is gone.
    """
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = termios.tcgetattr(fd)
    iflag &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
    iflag &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
    oflag &= ~termios.OPOST
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    attributes: list[Any] = [iflag, oflag, cflag, lflag, ispeed, ospeed, cc]
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


def window_size(fd: int) -> WindowSize | None:
    """The size of the terminal behind a descriptor; None without one, or when it is not set."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        return None
    return WindowSize(rows, columns) if rows and columns else None


@asynccontextmanager
async def open_tty(
    name: str, *, has_keyboard: bool = True, stdin: int = STDIN, stdout: int = STDOUT
) -> AsyncIterator[TtyBackend]:
    """Take standard output and, if it is a terminal, standard input. ``name`` is the console's.

    Without ``has_keyboard`` the input is another console's.

    Raises: HostError when standard output is closed.
    Cancel: the terminal's modes are restored whichever way this is left.
    """
    with ExitStack() as stack:
        try:
            output_fd = stack.enter_context(_private(stdout, os.O_WRONLY))
        except OSError as error:
            raise HostError.from_os_error(
                "dup", error, path="<stdout>", hint=f"choose another mode for the {name}"
            ) from error
        keyboard = None
        if has_keyboard and os.isatty(stdin):
            input_fd = stack.enter_context(_private(stdin, os.O_RDONLY))
            keyboard = Keyboard(input_fd)
            stack.callback(trio.lowlevel.notify_closing, input_fd)
            stack.callback(keyboard.restore)
        async with serve_output(output_fd, name) as output:
            yield TtyBackend(output, output_fd, keyboard)


@contextmanager
def _private(fd: int, access: int) -> Iterator[int]:
    """Open a non-blocking descriptor on what ``fd`` is, without changing ``fd`` for its sharers."""
    mode = os.fstat(fd).st_mode
    # A regular file keeps its open file description, for its position; it never blocks anyway.
    own = None if stat.S_ISREG(mode) else _reopened(fd, access)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    private = own if own is not None else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        if own is None:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        yield private
    finally:
        if own is None:
            fcntl.fcntl(private, fcntl.F_SETFL, flags)
        os.close(private)


def _reopened(fd: int, access: int) -> int | None:
    flags = access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        return None


def _is_foreground(fd: int) -> bool:
    """Whether job control lets this process use the terminal."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        # Not the terminal that controls this process: there is no job control on it.
        return True


@contextmanager
def _job_control_held() -> Iterator[None]:
    """Keep job control from stopping the program and its guest, should it be in the background.

    With the signals blocked, a change of modes succeeds and a read fails with EIO.
    """
    stops = {signal.SIGTTIN, signal.SIGTTOU}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
