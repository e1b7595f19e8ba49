"""A VMM as a child process, for tests: start it, read its console, talk to its API, end it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any

import trio

from vmm.client import AsyncClient
from vmm.testing.api import ApiConnection, Reply
from vmm.testing.stall import Stalled

STOP_GRACE_S = 60.0
"""How long an ended VMM may take before it is killed; a nested host is slow."""


def threads_of(pid: int) -> dict[int, str]:
    """The threads of a process by their ids, with their names: of those that do not end meanwhile.

    Source: proc(5), /proc/pid/task/tid/comm.
    """
    found = {}
    for entry in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


class VmmProcess:
    """One running ``python -m vmm``. What it prints on stdout and stderr is kept."""

    def __init__(self, process: trio.Process, directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.output = bytearray()
        self.errors = bytearray()
        self._grown = trio.Event()
        self._streams = 0

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        directory: Path,
        *arguments: str,
        api: bool = False,
        pass_fds: Sequence[int] = (),
        terminal: int | None = None,
        network: Path | None = None,
    ) -> AsyncIterator[VmmProcess]:
        """Start a VMM with the command line's arguments; leaving ends it.

        With ``api`` it gets an API socket at ``directory/api.sock`` and an event monitor at
        ``directory/events.json``. It inherits ``pass_fds``, and has ``terminal`` as its standard
        input and output if there is one, and is in the network namespace whose file ``network`` is.
        """
        command = [] if network is None else ["nsenter", f"--net={network}"]
        command += [sys.executable, "-m", "vmm", *arguments]
        if api:
            command += ["--api-socket", str(directory / "api.sock")]
            command += ["--event-monitor", f"path={directory / 'events.json'}"]
        async with trio.open_nursery() as nursery:
            console = PIPE if terminal is None else terminal
            process = await trio.lowlevel.open_process(
                command,
                stdin=console,
                stdout=console,
                stderr=PIPE,
                pass_fds=pass_fds,
                start_new_session=True,
            )
            vmm = cls(process, directory)
            for stream, store in ((process.stdout, vmm.output), (process.stderr, vmm.errors)):
                if stream is not None:
                    vmm._streams += 1
                    nursery.start_soon(vmm._keep, stream, store)
            try:
                yield vmm
            finally:
                with trio.CancelScope(shield=True):
                    await vmm.stop()
                nursery.cancel_scope.cancel()

    async def stop(self) -> int:
        """End the VMM as an operator would, with SIGTERM, and return its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            with trio.move_on_after(STOP_GRACE_S):
                return await self.process.wait()
            self.process.kill()
        return await self.process.wait()

    async def wait(self, seconds: float) -> int:
        """Wait for the VMM to end by itself and return its exit code. Raises: AssertionError."""
        with trio.move_on_after(seconds):
            return await self.process.wait()
        raise Stalled(f"The VMM still runs after {seconds} s\n{self.transcript()}")

    async def type(self, text: str) -> None:
        """Type on the console that the VMM's stdin feeds."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(text.encode())

    async def wait_for(self, text: str, seconds: float, *, after: int = 0) -> int:
        """Wait until stdout holds a text; returns the position behind it.

        Raises: AssertionError, with all that was printed, when it does not come in time.
        """
        wanted = text.encode()
        with trio.move_on_after(seconds):
            while (at := self.output.find(wanted, after)) < 0:
                if self._streams == 0:
                    break
                await self._grown.wait()
            else:
                return at + len(wanted)
        raise Stalled(f"{text!r} did not come within {seconds} s\n{self.transcript()}")

    @property
    def client(self) -> AsyncClient:
        """A client of its API: a typed method for each request."""
        return AsyncClient(str(self.directory / "api.sock"))

    async def api(self, method: str, name: str, body: object = None) -> Reply:
        """Send one request on a connection of its own."""
        async with ApiConnection.open(str(self.directory / "api.sock")) as connection:
            return await connection.request(method, name, body)

    async def put(self, name: str, body: object = None) -> None:
        """PUT, and insist on success. Raises: AssertionError with the server's words."""
        reply = await self.api("PUT", name, body)
        assert reply.status in (200, 204), (name, reply.status, reply.body)

    async def info(self) -> Any:  # noqa: ANN401  whatever the server sent
        """vm.info as JSON."""
        return (await self.api("GET", "vm.info")).json

    async def wait_until_served(self, seconds: float) -> None:
        """Wait until the API socket is there and vmm.ping answers. Raises: AssertionError."""
        with trio.move_on_after(seconds):
            while True:
                # There is nothing to wait on before the socket is there and listens.
                with suppress(FileNotFoundError, ConnectionRefusedError, trio.BrokenResourceError):
                    reply = await self.api("GET", "vmm.ping")
                    assert reply.status == 200
                    return
                if self.process.returncode is not None:
                    raise AssertionError(f"The VMM ended early\n{self.transcript()}")
                await trio.sleep(0.01)
        raise Stalled(f"No API after {seconds} s\n{self.transcript()}")

    async def wait_for_state(self, state: str, seconds: float) -> None:
        """Wait until vm.info shows a state. Raises: AssertionError when it does not in time."""
        with trio.move_on_after(seconds):
            while True:
                if (await self.info())["state"] == state:
                    return
                await trio.sleep(0.05)  # The API has no call that waits for a state.
        raise Stalled(f"No state {state} within {seconds} s\n{self.transcript()}")

    async def wait_for_event(self, name: str, seconds: float, *, after: int = 0) -> None:
        """Wait until an event has come more than ``after`` times. Raises: AssertionError."""
        with trio.move_on_after(seconds):
            while True:
                if self.events().count(name) > after:
                    return
                await trio.sleep(0.05)  # The monitor is a file, which cannot be waited on.
        raise Stalled(f"No event {name} within {seconds} s\n{self.transcript()}")

    def events(self) -> list[str]:
        """The names of the events so far, as ``source:event``."""
        text = (self.directory / "events.json").read_text()
        # What stands behind the last empty line is still being written.
        objects = [json.loads(part) for part in text.split("\n\n")[:-1]]
        return [f"{event['source']}:{event['event']}" for event in objects]

    def open_descriptors(self) -> list[str]:
        """What each open file descriptor of the VMM leads to."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        found = []
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):  # Closed meanwhile.
                found.append(os.readlink(folder / name))
        return sorted(found)

    def threads(self) -> list[str]:
        """The names of the VMM's threads."""
        return sorted(threads_of(self.process.pid).values())

    def transcript(self) -> str:
        """All that was printed, for a failed test's message."""
        out, err = (bytes(part).decode(errors="replace") for part in (self.output, self.errors))
        return f"--- stdout\n{out}\n--- stderr\n{err}\n--- exit code {self.process.returncode}"

    async def _keep(self, stream: trio.abc.ReceiveStream, store: bytearray) -> None:
        async for data in stream:
            store += data
            self._grow()
        self._streams -= 1
        self._grow()

    def _grow(self) -> None:
        grown, self._grown = self._grown, trio.Event()
        grown.set()


def arguments_for(kernel: Path, initramfs: Path, cmdline: str) -> Sequence[str]:
    """The payload part of a command line."""
    return ("--kernel", str(kernel), "--initramfs", str(initramfs), "--cmdline", cmdline)
