"""Programs started to be timed: from just before the start to what they then do."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tools.bench.errors import BenchError

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
"""Nothing that is measured here takes a tenth of this on the slowest host known."""


class Launch:
    """One started program and the clock that runs since."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._start = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._pidfd = os.pidfd_open(self.process.pid)
        self._cpu_ms_at_exit: float | None = None

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since just before the program was started."""
        return (time.perf_counter() - self._start) * 1000

    def ms_to_byte(self, byte: bytes) -> float:
        """Wait for a byte on the program's stdout and say when it came, in ms.

        Raises: BenchError when something else comes, or nothing.
        """
        assert self.process.stdout is not None
        stdout = self.process.stdout.fileno()
        if not _is_readable(stdout, PATIENCE_S):
            raise self.failure(f"wrote nothing within {PATIENCE_S:.0f} s")
        got = os.read(stdout, 1)
        elapsed = self.elapsed_ms
        if got != byte:
            raise self.failure(f"wrote {got!r} where {byte!r} was due")
        return elapsed

    def ms_to_exit(self, *codes: int) -> float:
        """Wait for the program's end and say when it came, in ms.

        Raises: BenchError when its exit code is none of ``codes``, or it does not end.
        """
        if not _is_readable(self._pidfd, PATIENCE_S):
            raise self.failure(f"did not end within {PATIENCE_S:.0f} s")
        elapsed = self.elapsed_ms
        self._cpu_ms_at_exit = self.cpu_ms
        code = self.process.wait()
        if code not in codes:
            raise self.failure(f"ended with exit code {code}")
        return elapsed

    @property
    def cpu_ms(self) -> float:
        """Milliseconds that the program has had of processors; of one that ended, by its end.

        On a busy host this is steadier than time.
        """
        if self._cpu_ms_at_exit is not None:
            return self._cpu_ms_at_exit
        return time.clock_gettime_ns(_cpu_clock(self.process.pid)) / 1e6

    def stderr_to_end(self) -> str:
        """Read what the program writes on stderr until it closes that."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode(errors="replace")

    def failure(self, what: str) -> BenchError:
        """An error that says what this program did, with its last words."""
        self.end()
        words = self.stderr_to_end().strip()
        return BenchError(f"{' '.join(self._command)} {what}{': ' if words else ''}{words}")

    def end(self) -> None:
        """Kill the program if it still runs, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Close what leads to the program."""
        os.close(self._pidfd)


@contextmanager
def launched(*command: str) -> Iterator[Launch]:
    """Start a program and see to it that it is gone in the end. Raises: BenchError."""
    try:
        launch = Launch(command)
    except OSError as error:
        raise BenchError(f"{command[0]} cannot be started: {error.strerror}") from error
    with launch.process:
        try:
            yield launch
        finally:
            launch.end()
            launch.close()


def _cpu_clock(pid: int) -> int:
    """The clock of another process's processor time, as clock_getcpuclockid(3) makes it."""
    return ~pid << 3 | 2


def _is_readable(fd: int, seconds: float) -> bool:
    """Wait until a descriptor is readable, or the time is over."""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def clean_environment() -> dict[str, str]:
    """The environment without Python's switches: bytecode is cached, as it is when installed."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def python(*arguments: str) -> tuple[str, ...]:
    """A command line of this Python."""
    return (sys.executable, *arguments)


def vmm(*arguments: str) -> tuple[str, ...]:
    """A command line of the VMM."""
    return python("-m", "vmm", *arguments)
