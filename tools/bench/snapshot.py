"""Snapshots of a guest whose RAM is full: taking one, bringing it back, and many at once.

RAM is a private copy of a file of noise, the same for both VMMs. QEMU's snapshot is its migration
to a file by ``cat``, as Debian 12's QEMU has no mapped-ram; it does not wait for the disk, and this
VMM does: the same with ``sync`` is shown too. A restore begins in a VMM that runs already and ends
when the request is answered, or with the guest's first instruction.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tools.bench import qemu
from tools.bench.connection import Connection, first_connection
from tools.bench.guests import SIGN_OF_LIFE, pvh_kernel
from tools.bench.memory import mapped_kib
from tools.bench.processes import Launch, launched
from tools.bench.series import Claim, Contender, Relation, Result, Sample, race
from tools.bench.served import put, served
from vmm.loop import LEFT_ALONE_S

RAM = 2 << 30
CLONES = 20
CLONE_RAM = 128 << 20

SAVE, COPY, DEMAND = "vmm: snapshot", "vmm: restore, copy", "vmm: restore, on demand"
QEMU_SAVE, QEMU_LOAD = "QEMU: migrate to a file", "QEMU: migrate from a file"
QEMU_SYNCED = "QEMU: migrate to a file, and sync"
FIRST = "vmm: request to first instruction, on demand"
CLONED = f"vmm: {CLONES} clones at once"

CLAIMS = (
    Claim(SAVE, QEMU_SAVE),
    Claim(SAVE, QEMU_SYNCED),
    Claim(COPY, QEMU_LOAD),
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
            Contender("QEMU", partial(_qemu, folder, kernel), required=False),
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
    with served(folder / "a.sock", *arguments, *consoles) as (launch, connection):
        launch.ms_to_byte(SIGN_OF_LIFE)
        threading.Thread(target=_drain, args=(launch,), daemon=True).start()
        put(connection, "vm.pause")
        taken = put(connection, "vm.snapshot", {"destination_url": f"file://{folder}/snapshot"})
    # From here on RAM has no file: it is read from the snapshot's.
    path = folder / "snapshot" / "config.json"
    config = json.loads(path.read_text())
    config["memory"] = {"size": size}
    path.write_text(json.dumps(config))
    return taken


def _drain(launch: Launch) -> None:
    assert launch.process.stdout is not None
    while launch.process.stdout.read(65536):
        pass


def _vmm(folder: Path, kernel: Path) -> Iterator[Sample]:
    yield Sample(SAVE, "ms", _save(folder, kernel, folder / "ram", RAM))
    request = {"source_url": f"file://{folder}/snapshot"}
    with _idle(folder / "b.sock") as (_, connection):
        yield Sample(COPY, "ms", put(connection, "vm.restore", request))
    request["memory_restore_mode"] = "OnDemand"
    with _idle(folder / "b.sock") as (launch, connection):
        start = launch.elapsed_ms
        taken = put(connection, "vm.restore", request | {"resume": True})
        yield Sample(FIRST, "ms", launch.ms_to_byte(SIGN_OF_LIFE) - start)
        yield Sample(DEMAND, "ms", taken)


def _qemu(folder: Path, kernel: Path) -> Iterator[Sample]:
    monitor, saved = folder / "qmp.sock", folder / "qemu-saved"
    saved.unlink(missing_ok=True)
    backend = f"memory-backend-file,id=ram,size={RAM},mem-path={folder}/ram,share=off"
    common = ("-m", str(RAM >> 20), "-kernel", str(kernel), *qemu.with_monitor(monitor), "-S")
    command = qemu.command(*common, "-object", backend, "-machine", "memory-backend=ram")
    with launched(*command) as launch, first_connection(monitor, launch) as connection:
        qemu.greet(connection)
        taken = qemu.migrated(connection, "migrate", f"exec:cat > {saved}")
        yield Sample(QEMU_SAVE, "ms", taken)
        start = time.perf_counter()
        with saved.open("rb") as file:
            os.fsync(file.fileno())
        yield Sample(QEMU_SYNCED, "ms", taken + (time.perf_counter() - start) * 1000)
    anonymous = f"memory-backend-ram,id=ram,size={RAM}"
    arguments = (*common, "-object", anonymous, "-machine", "memory-backend=ram")
    command = qemu.command(*arguments, "-incoming", "defer")
    with launched(*command) as launch, first_connection(monitor, launch) as connection:
        qemu.greet(connection)
        taken = qemu.migrated(connection, "migrate-incoming", f"exec:cat {saved}")
        yield Sample(QEMU_LOAD, "ms", taken)


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
        before = [_private_mib(launch) for launch, _ in served]
        threads = [
            threading.Thread(target=put, args=(connection, "vm.restore", request))
            for _, connection in served
        ]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        yield Sample(f"{CLONED}: all answered", "ms", (time.perf_counter() - start) * 1000)
        at_once = [_private_mib(launch) for launch, _ in served]
        yield Sample(f"{CLONED}: private before", "MiB", sum(before) / CLONES)
        yield Sample(f"{CLONED}: private when answered", "MiB", sum(at_once) / CLONES)


def _private_mib(launch: Launch) -> float:
    sizes = mapped_kib(Path(f"/proc/{launch.process.pid}/smaps_rollup").read_text())
    return (sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1024
