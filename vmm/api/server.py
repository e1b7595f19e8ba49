"""The API server: Hypercorn's trio protocol stack on a socket that listens already.

Hypercorn's own accept loop is not used, for three reasons. It shields every send from cancellation,
so one client that does not read would keep the process from ending; it waits its whole grace period
for clients that are merely idle; and it cuts off the answer to the very request that ends the VMM.
"""

from __future__ import annotations

import logging
import socket
import sys

import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from quart_trio import QuartTrio

from vmm.api.app import create_app
from vmm.api.connection import Connection
from vmm.api.routes import Owner, Service
from vmm.config.info import VmmPingResponse

GRACE_S = 0.5
"""Seconds that requests in progress are given when the server ends."""


async def serve(
    owner: Owner,
    listener: socket.socket,
    about: VmmPingResponse,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API until cancelled; ``listener`` is closed then, ``about`` answers vmm.ping.

    Cancel: idle connections close at once; requests in progress are answered if they end within
    GRACE_S, as the one that asked for the end does; after that every connection is cut.
    """
    clients = _Clients(create_app(Service(owner, about)))
    async with trio.open_nursery() as nursery:
        task_status.started()
        await clients.run(nursery, listener)


class _Clients:
    """The clients being served, and how they are let go."""

    def __init__(self, app: QuartTrio) -> None:
        self._app = app
        self._config = _hypercorn_config()
        self._context = WorkerContext(max_requests=None)
        self._connections: set[Connection] = set()
        self._closing = trio.Event()

    async def run(self, outer: trio.Nursery, listener: socket.socket) -> None:
        """Accept clients until ``outer`` is cancelled; hold their tasks for up to GRACE_S more."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as reaper:
                async with trio.open_nursery() as tasks:
                    outer.start_soon(self._accept, listener, tasks)
                    await self._closing.wait()
                    for connection in self._connections:
                        connection.end()
                    reaper.start_soon(self._cut_late, tasks.cancel_scope)
                reaper.cancel_scope.cancel()

    async def _accept(self, listener: socket.socket, tasks: trio.Nursery) -> None:
        try:
            await trio.serve_listeners(
                self._serve,
                [trio.SocketListener(trio.socket.from_stdlib_socket(listener))],
                handler_nursery=tasks,
            )
        finally:
            self._closing.set()

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = Connection(self._app, stream)
        self._connections.add(connection)
        try:
            await connection.run(self._config, self._context)
        finally:
            self._connections.discard(connection)

    async def _cut_late(self, tasks: trio.CancelScope) -> None:
        await trio.sleep(GRACE_S)
        for connection in self._connections:
            connection.close()
        tasks.cancel()


def _hypercorn_config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("vmm.api.hypercorn")
    config.include_date_header = False
    config.include_server_header = False
    config.keep_alive_max_requests = sys.maxsize
    config.keep_alive_timeout = float("inf")
    return config
