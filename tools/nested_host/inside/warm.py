"""The warm interpreter: imports what commands need once, then forks a child a command.

It is process 1 of the nested host. It never runs anything itself and holds no thread, so that a
fork is always safe; a forked child leaves `serve` with the command and becomes it.
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
import selectors
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Final

from .command import Command, become, run

WARM_SOCKET: Final = "/run/nested/warm.sock"
IMPORTS: Final = (
    "_hypothesis_pytestplugin",
    "_cffi_backend", "_hypothesis_pytestplugin", "argparse", "cffi", "ctypes", "httpx",
    "hypercorn.config", "hypercorn.trio", "hypothesis", "mmap", "pydantic", "pydantic.json_schema",
    "pytest", "pytest_trio.plugin", "quart_trio", "runpy", "trio", "trio.testing", "yaml",
)  # fmt: skip
# pytest cannot rewrite the assertions of plug-ins that are imported already, and warns of each;
# this mark in a module's docstring is how it is told that none is wanted.
PYTEST_PLUGINS: Final = ("hypothesis", "pytest_trio", "_hypothesis", "anyio")
NO_REWRITE: Final = "PYTEST_DONT_REWRITE"
MAX_FDS: Final = 253


def import_all() -> None:
    """Import what makes a command slow to start; a module that is not installed is passed over."""
    for name in IMPORTS:
        with contextlib.suppress(ImportError):
            __import__(name)
    with contextlib.suppress(ImportError):
        import pydantic

        # It imports half of itself when the first model is made.
        pydantic.create_model("First", field=(int, 1))
    for name, module in sys.modules.items():
        if "." not in name and name.startswith(PYTEST_PLUGINS):
            module.__doc__ = f"{module.__doc__ or ''}\n{NO_REWRITE}"


@dataclass
class Client:
    """Somebody waiting for the end of the command of process `pid`."""

    connection: socket.socket
    pid: int


class WarmServer:
    """Accepts commands on a unix socket and forks a child for each."""

    def __init__(self, path: str) -> None:
        self.agent_pid = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, wake_write = socket.socketpair()
        wake_write.setblocking(False)
        self._wake_write = wake_write
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._clients: dict[int, Client] = {}
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)

    def serve(self) -> Command:
        """Serve for ever; returns in a forked child, with the command it is to become."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    command = self._accept()
                    if command is not None:
                        return command
                elif key.fileobj is self._wake:
                    self._wake.recv(4096)
                    self._reap()
                else:
                    self._pass_signals(key.data)

    def _accept(self) -> Command | None:
        connection, _ = self._listener.accept()
        try:
            command = receive_command(connection)
        except (OSError, EOFError, ValueError) as error:
            print(f"nested host: a command was not understood: {error}", file=sys.stderr)
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            return command
        for fd in command.received_fds:
            os.close(fd)
        client = Client(connection, pid)
        self._clients[pid] = client
        self._selector.register(connection, selectors.EVENT_READ, client)
        return None

    def _reap(self) -> None:
        """Tell the client of each ended child how it ended; orphans end here too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.agent_pid:
                # Nothing can be asked of this machine any more; as process 1 ends, so does it.
                raise SystemExit(f"The agent ended with status {status}.")
            client = self._clients.pop(pid, None)
            if client is not None:
                self._selector.unregister(client.connection)
                with contextlib.suppress(OSError):
                    client.connection.send(b"%d\n" % os.waitstatus_to_exitcode(status))
                client.connection.close()

    def _pass_signals(self, client: Client) -> None:
        """Signal the child; a client that is gone was killed, so its command is killed too."""
        try:
            numbers = client.connection.recv(64)
        except OSError:
            numbers = b""
        for number in numbers or bytes((signal.SIGKILL,)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(client.pid, number)
        if not numbers:
            self._selector.unregister(client.connection)
            client.connection.close()
            self._clients.pop(client.pid)


def receive_command(connection: socket.socket) -> Command:
    """Read a request and the descriptors that come with it. Raises ValueError, EOFError: its."""
    header, received, _, _ = socket.recv_fds(connection, 4, MAX_FDS)
    try:
        remaining = int.from_bytes(header, "big")
        request = b""
        while len(request) < remaining:
            piece = connection.recv(remaining - len(request))
            if not piece:
                raise EOFError("the client went away")
            request += piece
        argv, cwd, environment, fds, umask, pid, is_terminal = marshal.loads(request)
    except (OSError, EOFError, ValueError):
        for fd in received:
            os.close(fd)
        raise
    return Command(argv, cwd, environment, fds, received, umask, pid, is_terminal)


def main() -> None:
    """Be the warm interpreter; the children come back from `serve` and never return."""
    # Imported here: the agent is forked like any command, but from code that is part of this.
    from . import agent

    import_all()
    server = WarmServer(WARM_SOCKET)
    gc.collect()
    gc.freeze()
    server.agent_pid = os.fork()
    if server.agent_pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os._exit(agent.main())
    command = server.serve()
    become(command)
    run(command)
