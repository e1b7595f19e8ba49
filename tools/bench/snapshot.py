"""Snapshots of a guest whose RAM is full: taking one, bringing it back, and many at once.

RAM is a private copy of a file of noise, the same for all VMMs. QEMU's snapshot is its migration
to a file: Debian 12's by ``cat``, as it has no mapped-ram, and that of Debian's backports by
mapped-ram with multifd. Neither waits for the disk, and this VMM does: the same with ``sync`` is
shown too. A restore begins in a VMM that runs already and ends when the request is answered, or
with the guest's first instruction; what it reads is on the disk and not in the page cache. The
memory that each takes is held until then, so that all find it backed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tools.bench import qemu
from tools.bench.backed import backed_memory
from tools.bench.connection import Connection, first_connection
from tools.bench.guests import SIGN_OF_LIFE, pvh_kernel
from tools.bench.memory import mapped_kib
from tools.bench.processes import Launch, launched
from tools.bench.series import Claim, Contender, Relation, Result, Sample, race
from tools.bench.served import put, served
from vmm.loop import LEFT_ALONE_S

RAM = 2 << 30
BACKED = 2 * RAM + RAM // 4
"""Host memory for RAM and its file in the page cache, for buffers and tables of pages."""
CHANNELS = 4
"""Of multifd, for mapped-ram."""
CLONES = 20
CLONE_RAM = 128 << 20

SAVE, COPY, DEMAND = "vmm: snapshot", "vmm: restore, copy", "vmm: restore, on demand"
OLD, NEW = "QEMU, by cat", "newer QEMU, mapped-ram"
FIRST = "vmm: request to first instruction, on demand"
CLONED = f"vmm: {CLONES} clones at once"

CLAIMS = (
    *(Claim(SAVE, f"{each}: to a file") for each in (OLD, NEW)),
    *(Claim(SAVE, f"{each}: to a file, and sync") for each in (OLD, NEW)),
    *(Claim(COPY, f"{each}: from a file") for each in (OLD, NEW)),
    Claim(FIRST, relation=Relation.NONE, target=30.0),
)

_TALK = bytes.fromhex("b047 e6e9 ebfc")
"""mov al, 'G'; out 0xe9, al; jmp to the out."""


def measure(rounds: int) -> Result:
    """Save and restore two GiB, in turns with QEMU; and restore one snapshot many times at once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kernel = folder / "kernel"
        kernel.write_bytes(pvh_kernel(_TALK))
        _write_noise(folder / "ram", RAM)
        contenders = [
            Contender("vmm", partial(_vmm, folder, kernel)),
            Contender(OLD, partial(_qemu, folder, kernel), required=False),
            Contender(NEW, partial(_newer_qemu, folder, kernel), required=False),
            Contender("clones", partial(_clones, folder, kernel)),
        ]
        title = f"Snapshots of {RAM >> 30} GiB of noise"
        return race("snapshot", title, contenders, CLAIMS, rounds)


def _write_noise(path: Path, size: int) -> None:
    step = os.urandom(16 << 20)
    with path.open("wb") as file:
        for _ in range(size // len(step)):
            file.write(step)


@contextmanager
def _idle(socket: Path) -> Iterator[tuple[Launch, Connection]]:
    """A VMM that has waited for a VM for a while, and has done what it then does."""
    with served(socket) as (launch, connection):
        used = -1.0
        time.sleep(2 * LEFT_ALONE_S)
        while used != (used := launch.cpu_ms):
            time.sleep(LEFT_ALONE_S)
        yield launch, connection


def _save(folder: Path, kernel: Path, ram: Path, size: int) -> float:
    """Leave a snapshot of a VM in ``folder/snapshot``; the ms that took."""
    shutil.rmtree(folder / "snapshot", ignore_errors=True)
    (folder / "snapshot").mkdir()
    zone = f"id=mem0,size={size},file={ram}"
    arguments = ("--kernel", str(kernel), "--memory", "size=0", "--memory-zone", zone)
    consoles = ("--console", "off", "--serial", "off", "--debug-console", "tty")
    with (
        backed_memory(BACKED) as let_go,
        served(folder / "a.sock", *arguments, *consoles) as (launch, connection),
    ):
        launch.ms_to_byte(SIGN_OF_LIFE)
        threading.Thread(target=_drain, args=(launch,), daemon=True).start()
        put(connection, "vm.pause")
        let_go()
        taken = put(connection, "vm.snapshot", {"destination_url": f"file://{folder}/snapshot"})
    # From here on RAM has no file: it is read from the snapshot's.
    path = folder / "snapshot" / "config.json"
    config = json.loads(path.read_text())
    config["memory"] = {"size": size}
    path.write_text(json.dumps(config))
    _forget(folder / "snapshot" / "memory-ranges")
    return taken


def _forget(path: Path) -> None:
    """Have a file on the disk alone."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _drain(launch: Launch) -> None:
    assert launch.process.stdout is not None
    while launch.process.stdout.read(65536):
        pass


def _vmm(folder: Path, kernel: Path) -> Iterator[Sample]:
    yield Sample(SAVE, "ms", _save(folder, kernel, folder / "ram", RAM))
    request = {"source_url": f"file://{folder}/snapshot"}
    with backed_memory(BACKED) as let_go, _idle(folder / "b.sock") as (_, connection):
        let_go()
        yield Sample(COPY, "ms", put(connection, "vm.restore", request))
    request["memory_restore_mode"] = "OnDemand"
    with backed_memory(BACKED) as let_go, _idle(folder / "b.sock") as (launch, connection):
        let_go()
        start = launch.elapsed_ms
        taken = put(connection, "vm.restore", request | {"resume": True})
        yield Sample(FIRST, "ms", launch.ms_to_byte(SIGN_OF_LIFE) - start)
        yield Sample(DEMAND, "ms", taken)


def _qemu(folder: Path, kernel: Path) -> Iterator[Sample]:
    saved = folder / "qemu-saved"
    yield from _qemu_to_and_from(
        OLD, folder, kernel, saved, f"exec:cat > {saved}", f"exec:cat {saved}"
    )


def _newer_qemu(folder: Path, kernel: Path) -> Iterator[Sample]:
    saved = folder / "qemu-mapped"
    yield from _qemu_to_and_from(NEW, folder, kernel, saved, f"file:{saved}", f"file:{saved}")


def _qemu_to_and_from(
    name: str, folder: Path, kernel: Path, saved: Path, to: str, source: str
) -> Iterator[Sample]:
    saved.unlink(missing_ok=True)
    backend = f"memory-backend-file,id=ram,size={RAM},mem-path={folder}/ram,share=off"
    with _monitored(name, folder, kernel, backend) as (connection, let_go):
        let_go()
        taken = qemu.migrated(connection, "migrate", to)
        yield Sample(f"{name}: to a file", "ms", taken)
        start = time.perf_counter()
        _forget(saved)
        synced = taken + (time.perf_counter() - start) * 1000
        yield Sample(f"{name}: to a file, and sync", "ms", synced)
    anonymous = f"memory-backend-ram,id=ram,size={RAM}"
    with _monitored(name, folder, kernel, anonymous, "-incoming", "defer") as (connection, let_go):
        let_go()
        taken = qemu.migrated(connection, "migrate-incoming", source)
        yield Sample(f"{name}: from a file", "ms", taken)


@contextmanager
def _monitored(
    name: str, folder: Path, kernel: Path, backend: str, *arguments: str
) -> Iterator[tuple[Connection, Callable[[], None]]]:
    """A QEMU that stands still, and host memory for what it will take."""
    monitor = folder / "qmp.sock"
    program = qemu.newer_program() if name == NEW else (qemu.PROGRAM,)
    machine = ("-m", str(RAM >> 20), "-kernel", str(kernel), *qemu.with_monitor(monitor), "-S")
    memory = ("-object", backend, "-machine", "memory-backend=ram")
    command = qemu.command(*machine, *memory, *arguments, program=program)
    with (
        backed_memory(BACKED) as let_go,
        launched(*command) as launch,
        first_connection(monitor, launch) as connection,
    ):
        qemu.greet(connection)
        if name == NEW:
            qemu.enable(connection, "mapped-ram", "multifd")
            qemu.execute(connection, "migrate-set-parameters", **{"multifd-channels": CHANNELS})
        yield connection, let_go


def _clones(folder: Path, kernel: Path) -> Iterator[Sample]:
    """All VMMs run already and are asked at once; then what each has for itself."""
    place = folder / "clones"
    place.mkdir(exist_ok=True)
    if not (place / "ram").exists():
        _write_noise(place / "ram", CLONE_RAM)
        _save(place, kernel, place / "ram", CLONE_RAM)
    request = {"source_url": f"file://{place}/snapshot", "memory_restore_mode": "OnDemand"}
    with ExitStack() as stack:
        served = [stack.enter_context(_idle(place / f"{i}.sock")) for i in range(CLONES)]
        let_go = stack.enter_context(backed_memory(BACKED))
        before = [_private_mib(launch) for launch, _ in served]
        pool = stack.enter_context(ThreadPoolExecutor(CLONES))
        let_go()
        start = time.perf_counter()
        answers = [pool.submit(put, connection, "vm.restore", request) for _, connection in served]
        for answer in answers:
            answer.result()  # One that failed fails all of it.
        yield Sample(f"{CLONED}: all answered", "ms", (time.perf_counter() - start) * 1000)
        at_once = [_private_mib(launch) for launch, _ in served]
        yield Sample(f"{CLONED}: private before", "MiB", sum(before) / CLONES)
        yield Sample(f"{CLONED}: private when answered", "MiB", sum(at_once) / CLONES)


def _private_mib(launch: Launch) -> float:
    sizes = mapped_kib(Path(f"/proc/{launch.process.pid}/smaps_rollup").read_text())
    return (sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1024
