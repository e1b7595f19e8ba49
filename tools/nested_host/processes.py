"""Child processes that never outlive their owner, nor the scope they were started in."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tools.nested_host.errors import NestedHostError

KILL_AFTER_S = 2


class OwnedProcess:
    """A child process as a trio task sees it."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """Return its exit code, or minus a signal; None while it runs."""
        return self._popen.poll()

    async def wait(self) -> int:
        """Wait for its end; returns its exit code, or minus a signal."""
        while (code := self._popen.poll()) is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        return code

    async def stop(self) -> None:
        """End it, by force if it does not end by itself within 2 s."""
        with trio.CancelScope(shield=True):
            if self._popen.poll() is None:
                self._popen.terminate()
            with trio.move_on_after(KILL_AFTER_S):
                await self.wait()
            if self._popen.poll() is None:
                self._popen.kill()
            await self.wait()  # bounded: nothing survives SIGKILL
        os.close(self._pidfd)


@asynccontextmanager
async def owned_process(
    command: Sequence[str],
    *,
    log: Path,
    package: str,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[OwnedProcess]:
    """Run a program for the length of a block; it also ends if this process is killed.

    Raises: NestedHostError: the program is not installed; names the package that has it (host).
    """
    # setpriv ties the child to the thread that starts it, so it is started from this one.
    tied = ["setpriv", "--pdeathsig", "KILL", *command]
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if shutil.which(command[0], path=path) is None:
        raise NestedHostError(f"{command[0]} is not there; apt-get install {package}.")
    with log.open("wb") as output:
        popen = subprocess.Popen(  # noqa: ASYNC220 - it must be this thread's child
            tied,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            env={**os.environ, **(environment or {}), "PATH": path},
            start_new_session=True,  # a Ctrl-C of the terminal is for us to handle, in order
        )
    process = OwnedProcess(popen)
    try:
        yield process
    finally:
        await process.stop()
