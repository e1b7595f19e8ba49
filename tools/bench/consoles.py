"""What a guest writes to its consoles, and what a VMM takes whose guest does nothing.

The idle guest has driven every device of the other benchmarks before it halts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tools.bench.errors import BenchError
from tools.bench.load_guest import build_kernel, cycles_per_us, step
from tools.bench.load_run import COMMANDS, QEMU, VMM, Devices, idle_percent, reports
from tools.bench.network import TAP, own_network
from tools.bench.processes import launched
from tools.bench.series import Claim, Contender, Relation, Result, Sample, race

CHUNK = 4096
CHUNKS = 1000
SERIAL_BYTES = 5000
DISK_BYTES = 1 << 20
IDLE_S = 2.0
IDLE_TARGET = 0.5
"""Percent of a core."""

CONSOLE = "virtio-console, 4 KiB"
SERIAL = "serial port, a byte"
IDLE = "idle"

CLAIMS = (
    Claim(f"{VMM}: {CONSOLE}", f"{QEMU}: {CONSOLE}"),
    Claim(f"{VMM}: {SERIAL}", f"{QEMU}: {SERIAL}"),
    Claim(f"{VMM}: {IDLE}", relation=Relation.NONE, target=IDLE_TARGET),
)

STEPS = (
    step("check", 64, 8),
    step("send", 64, 64),
    step("console", CHUNK, CHUNKS),
    step("serial", SERIAL_BYTES),
    step("idle"),
)


def measure(rounds: int) -> Result:
    """Have both VMMs' guests write and then do nothing, in turns."""
    with tempfile.TemporaryDirectory() as name, own_network():
        folder = Path(name)
        kernel = build_kernel(folder)
        contenders = [
            Contender(vmm, partial(_load, vmm, kernel, folder, cycles_per_us()), vmm == VMM)
            for vmm in (VMM, QEMU)
        ]
        title = "Consoles, and a VMM with nothing to do"
        return race("consoles", title, contenders, CLAIMS, rounds)


def _load(vmm: str, kernel: Path, folder: Path, per_us: float) -> Iterator[Sample]:
    disk, console, serial = (folder / name for name in ("disk.raw", "console", "serial"))
    disk.write_bytes(bytes(DISK_BYTES))
    devices = Devices(disk=disk, tap=TAP, console=console, serial=serial)
    with launched(*COMMANDS[vmm](kernel, STEPS, devices)) as launch:
        for report in reports(launch):
            match report.name:
                case "console":
                    yield Sample(
                        f"{vmm}: {CONSOLE}", "µs", report.numbers["cycles"] / CHUNKS / per_us
                    )
                case "serial":
                    us = report.numbers["cycles"] / SERIAL_BYTES / per_us
                    yield Sample(f"{vmm}: {SERIAL}", "µs", us)
                case "ready idle":
                    yield Sample(f"{vmm}: {IDLE}", "%", idle_percent(launch, IDLE_S))
                    break
    written = console.stat().st_size, serial.stat().st_size
    if written != (CHUNK * CHUNKS, SERIAL_BYTES):
        raise BenchError(f"{vmm}: {written} bytes were written by its consoles")
