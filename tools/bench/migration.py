"""A guest whose RAM is full moves between two VMMs of this host, over the loopback.

The guest writes a number into every page first, so that no page is zero; then it halts, or goes on
writing some of them for ever. A move is timed from the request to its end at the source; QEMU's
destination is built before that, this VMM's within. QEMU sends by multifd with as many channels
where there is more than one connection, without limit of bandwidth. How long the guest stood is
what each source says of itself. The memory that the destination takes is held until then, so that
both find it backed.
"""

from __future__ import annotations

import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tools.bench import qemu
from tools.bench.backed import backed_memory
from tools.bench.connection import Connection, first_connection
from tools.bench.errors import BenchError
from tools.bench.guests import SIGN_OF_LIFE, pvh_kernel
from tools.bench.processes import PATIENCE_S, Launch, launched
from tools.bench.series import Claim, Contender, Relation, Result, Sample, race
from tools.bench.served import put, served

RAM = 2 << 30
PAGE = 4096
FIRST, LAST = 2 << 20, RAM - (16 << 20)
"""What the guest fills; both VMMs have something of their own below and above."""
BACKED = RAM + RAM // 4
"""Host memory for the destination's RAM, for buffers and tables of pages."""
BUSY_PAGES = 8192
"""What the other guest goes on writing: 32 MiB, which both can send within their downtime."""
CONNECTIONS = (1, 4, 16)
JUDGED = 4
"""So many are to take no longer than QEMU; the others are told."""
DOWNTIME_MS = 300
"""The default of both."""
MOST_IDLE_MS = 100.0
STEP_S = 0.01
LISTENING = "0A"
"""TCP_LISTEN in /proc/net/tcp."""

_STOOD = re.compile(r"it stood for ([0-9.]+) ms")


def _name(vmm: str, how: str) -> str:
    return f"{vmm}: {how}"


def _over(connections: int) -> str:
    return f"{connections} connection{'s' * (connections > 1)}"


BUSY = f"busy guest, {_over(4)}"
CLAIMS = (
    *(
        Claim(
            _name("vmm", _over(each)),
            _name("QEMU", _over(each)),
            target=1.0 if each == JUDGED else None,
        )
        for each in CONNECTIONS
    ),
    Claim(_name("vmm", BUSY), _name("QEMU", BUSY)),
    *(
        Claim(f"{_name('vmm', _over(each))}: stood", relation=Relation.NONE, target=MOST_IDLE_MS)
        for each in CONNECTIONS
    ),
    Claim(f"{_name('vmm', BUSY)}: stood", relation=Relation.NONE, target=float(DOWNTIME_MS)),
    Claim(f"{_name('vmm', BUSY)}: stood", f"{_name('QEMU', BUSY)}: stood"),
    *(
        Claim(f"{_name('vmm', _over(each))}: memory", f"{_name('QEMU', _over(each))}: memory")
        for each in CONNECTIONS
    ),
)


def measure(rounds: int) -> Result:
    """Move an idle and a busy guest of one GiB, in turns with QEMU."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        idle, busy = folder / "idle", folder / "busy"
        idle.write_bytes(pvh_kernel(_fill() + bytes.fromhex("fa f4 ebfd")))
        busy.write_bytes(pvh_kernel(_fill() + _write(FIRST, BUSY_PAGES, "ff07") + b"\xeb\xea"))
        contenders = []
        for kernel, connections in (*((idle, each) for each in CONNECTIONS), (busy, 4)):
            how = BUSY if kernel is busy else _over(connections)
            for vmm, move in (("vmm", _vmm), ("QEMU", _qemu)):
                label = _name(vmm, how)
                call = partial(move, label, folder, kernel, connections)
                contenders.append(Contender(label, call, required=vmm == "vmm"))
        contenders.append(Contender("vmm: local", partial(_local, folder, idle)))
        title = f"A guest with {RAM >> 30} GiB of RAM moves"
        return race("migration", title, contenders, CLAIMS, rounds)


def _fill() -> bytes:
    """Write into all pages, then show life."""
    return _write(FIRST, (LAST - FIRST) // PAGE, "893f") + bytes.fromhex("b047 e6e9")


def _write(start: int, pages: int, instruction: str) -> bytes:
    """Do an instruction of two bytes with EDI at the begin of each page, in 20 bytes."""
    begin = b"\xbf" + start.to_bytes(4, "little") + b"\xb9" + pages.to_bytes(4, "little")
    return begin + bytes.fromhex(instruction + "81c700100000 e2f6")  # add edi, 4096; loop


def _vmm(name: str, folder: Path, kernel: Path, connections: int) -> Iterator[Sample]:
    port = _free_port()
    url = f"tcp:127.0.0.1:{port}"
    request = {"destination_url": url, "connections": connections, "downtime_ms": DOWNTIME_MS}
    with _receiving(folder, {"receiver_url": url}, partial(_listens, port)):
        yield from _sent(name, folder, kernel, request, f"size={RAM}")


def _local(folder: Path, kernel: Path) -> Iterator[Sample]:
    path = folder / "local"
    url = f"unix:{path}"
    with _receiving(folder, {"receiver_url": url}, path.exists):
        request = {"destination_url": url, "local": True}
        yield from _sent("vmm: local", folder, kernel, request, f"size={RAM},shared=on")


@contextmanager
def _receiving(folder: Path, request: object, is_ready: Callable[[], bool]) -> Iterator[None]:
    """A VMM that waits for a VM, and has it in the end."""
    with served(folder / "b.sock") as (_, connection):
        failures: list[BenchError] = []
        thread = threading.Thread(target=_try_put, args=(connection, request, failures))
        thread.start()
        _wait_until(is_ready, "no VMM listens for the VM")
        yield
        thread.join()
        if failures:
            raise failures[0]


def _try_put(connection: Connection, request: object, failures: list[BenchError]) -> None:
    try:
        put(connection, "vm.receive-migration", request)
    except BenchError as error:
        failures.append(error)


def _sent(name: str, folder: Path, kernel: Path, request: object, memory: str) -> Iterator[Sample]:
    """Run the guest here, send it away, and say how that went."""
    arguments = ("--kernel", str(kernel), "--memory", memory, "-v")
    consoles = ("--console", "off", "--serial", "off", "--debug-console", "tty")
    with (
        backed_memory(BACKED) as let_go,
        served(folder / "a.sock", *arguments, *consoles) as (launch, connection),
    ):
        launch.ms_to_byte(SIGN_OF_LIFE)
        with _watched(launch) as grown:
            let_go()
            taken = put(connection, "vm.send-migration", request)
        launch.ms_to_exit(0)
        log = launch.stderr_to_end()
    stood = _STOOD.search(log)
    if stood is None:
        raise BenchError(f"the VMM does not say how long its guest stood: {log}")
    yield from _samples(name, taken, float(stood[1]), max(grown))


def _samples(name: str, taken_ms: float, stood_ms: float, grown_mib: float) -> Iterator[Sample]:
    yield Sample(name, "ms", taken_ms)
    yield Sample(f"{name}: throughput", "MiB/s", (RAM >> 20) / taken_ms * 1000)
    yield Sample(f"{name}: stood", "ms", stood_ms)
    yield Sample(f"{name}: memory", "MiB", grown_mib)


def _qemu(name: str, folder: Path, kernel: Path, connections: int) -> Iterator[Sample]:
    port = _free_port()
    uri = f"tcp:127.0.0.1:{port}"
    with (
        backed_memory(BACKED) as let_go,
        _monitored(folder / "qb.sock", kernel, connections, "-incoming", "defer") as (_, other),
        _monitored(folder / "qa.sock", kernel, connections) as (launch, connection),
    ):
        launch.ms_to_byte(SIGN_OF_LIFE)
        qemu.execute(other, "migrate-incoming", uri=uri)
        with _watched(launch) as grown:
            let_go()
            taken = qemu.migrated(connection, "migrate", uri)
        stood = qemu.execute(connection, "query-migrate")["downtime"]
    assert isinstance(stood, int)
    yield from _samples(name, taken, stood, max(grown))


@contextmanager
def _monitored(
    monitor: Path, kernel: Path, connections: int, *arguments: str
) -> Iterator[tuple[Launch, Connection]]:
    monitor.unlink(missing_ok=True)
    machine = ("-m", str(RAM >> 20), "-kernel", str(kernel))
    command = qemu.command(*machine, *qemu.with_monitor(monitor), *arguments)
    with launched(*command) as launch, first_connection(monitor, launch) as connection:
        qemu.greet(connection)
        if connections > 1:
            qemu.enable(connection, "multifd")
            channels = {"multifd-channels": connections}
            qemu.execute(connection, "migrate-set-parameters", **channels)
        qemu.execute(connection, "migrate-set-parameters", **{"downtime-limit": DOWNTIME_MS})
        yield launch, connection


@contextmanager
def _watched(launch: Launch) -> Iterator[list[float]]:
    """By how many MiB a program is larger than at the begin, again and again."""
    grown = [0.0]
    before = _resident_mib(launch)
    done = threading.Event()

    def look() -> None:
        while not done.wait(STEP_S):
            grown.append(_resident_mib(launch) - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield grown
    finally:
        done.set()
        thread.join()


def _resident_mib(launch: Launch) -> float:
    """What a program has of the host's memory; nothing when it has ended."""
    return int(Path(f"/proc/{launch.process.pid}/statm").read_text().split()[1]) * PAGE / (1 << 20)


def _wait_until(is_so: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > end:
            raise BenchError(otherwise)
        time.sleep(STEP_S)


def _listens(port: int) -> bool:
    """Whether somebody listens on a port; a connection would be taken for the VM's."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    found = (line.split()[1:4] for line in lines)
    return any(local.endswith(f":{port:04X}") and state == LISTENING for local, _, state in found)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
