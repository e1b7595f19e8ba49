"""The socket that debuggers connect to, and the machine that they find there.

One debugger at a time. A machine begins with its vCPUs standing, until a debugger has come and lets
them run; when its machine ends, a session does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from vmm.errors import VmmError, chain, first_error
from vmm.gdb.debuggee import Debuggee
from vmm.gdb.session import Session

if TYPE_CHECKING:
    import socket

    from vmm.machine.bus import Lifecycle
    from vmm.machine.memory import GuestMemory
    from vmm.machine.vcpus import Vcpus

logger = logging.getLogger(__name__)

RETRY_S = 1.0


class DebugServer:
    """Leads debuggers, who come to ``listener``, to the machine that there is."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._debuggee: Debuggee | None = None
        self._session: Session | None = None
        self._changed = trio.Event()

    @contextmanager
    def showing(
        self, vcpus: Vcpus, memory: GuestMemory, lifecycle: Lifecycle
    ) -> Iterator[Debuggee]:
        """Show a machine to debuggers until the end of the block; its vCPUs must be there."""
        self._debuggee = Debuggee(vcpus, memory, lifecycle)
        self._changed.set()
        try:
            yield self._debuggee
        finally:
            self._debuggee = None
            self._changed = trio.Event()
            if self._session is not None:
                self._session.machine_is_gone()

    async def run(self) -> None:
        """Serve one debugger after the other, for ever."""
        accepting = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))
        while True:
            try:
                stream = await accepting.accept()
            except OSError as error:
                logger.warning("No debugger can be accepted: %s", error.strerror)
                await trio.sleep(RETRY_S)
                continue
            async with stream:
                await self._serve(stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        while self._debuggee is None:
            await self._changed.wait()
        self._session = Session(stream, self._debuggee)
        logger.info("A debugger has come")
        try:
            ended = await self._session.run()
            logger.info("The debugger is gone: %s", ended.value)
        except* VmmError as group:
            for line in chain(first_error(group)):
                logger.error("The debugger's session failed: %s", line)
        finally:
            self._session = None
