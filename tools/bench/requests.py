"""What a request costs: latency and rate of ``vmm.ping``, beside QEMU's monitor.

The client is as bare as can be, so what is measured is the server. A new connection to QEMU also
exchanges its greeting, which its protocol asks for. Requests are on one connection that is kept, or
on a fresh one each.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import mean, quantiles

from tools.bench import qemu
from tools.bench.connection import PING_AND_CLOSE, Connection, connected, first_connection
from tools.bench.errors import BenchError
from tools.bench.first_instruction import vmm_arguments
from tools.bench.guests import write_guests
from tools.bench.processes import launched, vmm
from tools.bench.series import Claim, Contender, Result, Sample, race

KEPT = 300
"""Requests a round on one connection."""
FRESH = 100
"""Requests a round with a connection each."""

VMM_KEPT = "vmm.ping, kept"
VMM_FRESH = "vmm.ping, fresh"
QEMU_KEPT = "QEMU query-status, kept"
QEMU_FRESH = "QEMU query-status, fresh"

CLAIMS = tuple(
    Claim(f"{mine}: {metric}", f"{other}: {metric}")
    for mine, other in ((VMM_KEPT, QEMU_KEPT), (VMM_FRESH, QEMU_FRESH))
    for metric in ("p50", "p99")
)


def measure(rounds: int) -> Result:
    """Ask a VMM with an idle guest, and a QEMU with the same, in turns."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as servers:
        folder = Path(name)
        kernel = write_guests(folder).idle
        socket = folder / "vmm.sock"
        _serve(servers, socket, vmm("--api-socket", str(socket), *vmm_arguments(kernel)))
        contenders = [
            Contender(VMM_KEPT, partial(_on_one_connection, VMM_KEPT, socket, Connection.ping)),
            Contender(VMM_FRESH, partial(_on_connections, VMM_FRESH, socket, _ping_and_close)),
        ]
        notes: tuple[str, ...] = ()
        monitor = folder / "qmp.sock"
        command = qemu.command("-kernel", str(kernel), *qemu.with_monitor(monitor))
        try:
            _serve(servers, monitor, command)
        except BenchError as error:
            notes = (f"QEMU was not measured: {error}",)
        else:
            kept = partial(_on_one_connection, QEMU_KEPT, monitor, _query, greet=True)
            fresh = partial(_on_connections, QEMU_FRESH, monitor, _greet_and_query)
            contenders += [Contender(QEMU_KEPT, kept), Contender(QEMU_FRESH, fresh)]
        result = race("requests", "A request to a running VMM", contenders, CLAIMS, rounds)
        return Result(result.name, result.title, result.series, result.comparisons, notes)


def _serve(servers: ExitStack, socket: Path, command: tuple[str, ...]) -> None:
    """Start a server that lives as long as ``servers``, and wait until it takes connections."""
    launch = servers.enter_context(launched(*command))
    with first_connection(socket, launch):
        pass


def _on_one_connection(
    name: str, socket: Path, request: Callable[[Connection], None], *, greet: bool = False
) -> Iterator[Sample]:
    with connected(socket) as connection:
        if greet:
            qemu.greet(connection)
        yield from _timed(name, KEPT, partial(request, connection))


def _on_connections(
    name: str, socket: Path, request: Callable[[Connection], None]
) -> Iterator[Sample]:
    def once() -> None:
        with connected(socket) as connection:
            request(connection)

    yield from _timed(name, FRESH, once)


def _ping_and_close(connection: Connection) -> None:
    connection.ping(PING_AND_CLOSE)


def _query(connection: Connection) -> None:
    qemu.execute(connection, "query-status")


def _greet_and_query(connection: Connection) -> None:
    qemu.greet(connection)
    _query(connection)


def _timed(name: str, times: int, request: Callable[[], None]) -> Iterator[Sample]:
    taken_us: list[float] = []
    for _ in range(times):
        start = time.perf_counter_ns()
        request()
        taken_us.append((time.perf_counter_ns() - start) / 1000)
    percentiles = quantiles(taken_us, n=100)
    yield Sample(f"{name}: p50", "µs", percentiles[49])
    yield Sample(f"{name}: p99", "µs", percentiles[98])
    yield Sample(f"{name}: rate", "/s", 1e6 / mean(taken_us))
