"""A VMM with its API, and requests of it that are timed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.bench.connection import Connection, first_connection
from tools.bench.processes import Launch, launched, vmm


@contextmanager
def served(socket: Path, *arguments: str) -> Iterator[tuple[Launch, Connection]]:
    """Start a VMM that serves its API on a socket, and wait until it answers."""
    socket.unlink(missing_ok=True)
    command = vmm("--api-socket", str(socket), *arguments)
    with launched(*command) as launch, first_connection(socket, launch) as connection:
        connection.ping()
        yield launch, connection


def put(connection: Connection, name: str, body: object = None) -> float:
    """Send a request and wait for its answer; the ms that took."""
    start = time.perf_counter()
    connection.put(name, None if body is None else json.dumps(body).encode())
    return (time.perf_counter() - start) * 1000
