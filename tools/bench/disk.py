"""A disk under load from a guest that polls, beside QEMU's: time a request, at several depths.

Without O_DIRECT, as is the default of both, reads come from the host's page cache: there the VMM is
measured. Writes wait for the host's file system, and with O_DIRECT all waits for its storage: there
one sees what those leave of the difference. Images are made where temporary files are: on a file
system in memory (TMPDIR=/dev/shm) both modes are without storage.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tools.bench.errors import BenchError
from tools.bench.load_guest import build_kernel, cycles_per_us, step
from tools.bench.load_run import QEMU, VMM, Devices, run_load
from tools.bench.series import Claim, Contender, Result, Sample, race

IMAGE_BYTES = 256 << 20
RUN_US = 200_000
WARM_UP = step("check", 4096, 32)


class Load(NamedTuple):
    """One kind of load: what the guest's step is told, and the most it may be of QEMU's."""

    name: str
    writes: bool
    is_random: bool
    depth: int
    bytes: int
    target: float


LOADS = (
    Load("random read 4 KiB, depth 1", False, True, 1, 4096, 1.5),
    Load("random read 4 KiB, depth 32", False, True, 32, 4096, 1.0),
    Load("sequential read 1 MiB, depth 4", False, False, 4, 1 << 20, 1.0),
    Load("random write 4 KiB, depth 1", True, True, 1, 4096, 1.5),
    Load("random write 4 KiB, depth 32", True, True, 32, 4096, 1.0),
    Load("sequential write 1 MiB, depth 4", True, False, 4, 1 << 20, 1.0),
)
"""Reads come first: what writes leave behind in the host would disturb them."""
DIRECT = ", direct"
"""Follows a load's name where the page cache is passed by."""
MODES = ("", DIRECT)


def measure(rounds: int) -> Result:
    """Put the same loads on the disks of both VMMs, in turns."""
    claims = [
        Claim(f"{VMM}: {load.name}{mode}", f"{QEMU}: {load.name}{mode}", target=load.target)
        for mode in MODES
        for load in LOADS
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kernel = build_kernel(folder)
        # An image each: what is written past the page cache is dropped from it.
        images = dict(zip(MODES, (folder / "cached.raw", folder / "direct.raw"), strict=True))
        for image in images.values():
            _write_image(image)
        contenders = [
            Contender(vmm, partial(_load, vmm, kernel, images, cycles_per_us()), vmm == VMM)
            for vmm in (VMM, QEMU)
        ]
        title = "A request to a disk, by load"
        return race("disk", title, contenders, claims, rounds)


def _write_image(image: Path) -> None:
    """Make an image without holes, and have it on the storage before the first measurement."""
    with image.open("wb") as file:
        for _ in range(IMAGE_BYTES >> 20):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())


def _load(vmm: str, kernel: Path, images: dict[str, Path], per_us: float) -> Iterator[Sample]:
    cycles = int(RUN_US * per_us)
    steps = [
        step("disk", int(load.writes), int(load.is_random), load.depth, load.bytes, cycles)
        for load in LOADS
    ]
    for mode, image in images.items():
        devices = Devices(disk=image, is_direct=mode == DIRECT)
        checked, *results = run_load(vmm, kernel, [WARM_UP, *steps], devices)
        if checked.numbers["wrong"]:
            raise BenchError(f"{vmm}: {checked.numbers['wrong']} blocks were read wrong")
        for load, report in zip(LOADS, results, strict=True):
            us = report.numbers["cycles"] / report.numbers["requests"] / per_us
            yield Sample(f"{vmm}: {load.name}{mode}", "µs", us)
