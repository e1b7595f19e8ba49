"""The guest that puts devices under load, built from its sources, and what it is told and says.

Its command line is its program: steps, done one after the other; each says a line on the debug port
when it is done. tests/kvm/load/main.c is the list of them. The same image runs in every VMM.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

from tools.bench.errors import BenchError
from vmm.kvm_cffi import Kvm

SOURCES = Path(__file__).resolve().parents[2] / "tests" / "kvm" / "load"

DONE = "done"
READY = "ready"
"""Comes before what a step waits for, with the step's name."""
FAILED = "failed:"

_COMPILER = "gcc"
_HOSTED = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
_BARE = (
    *_HOSTED,
    *("-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie"),
    *("-mgeneral-regs-only", "-mno-red-zone", "-fno-stack-protector", "-fcf-protection=none"),
    "-fno-asynchronous-unwind-tables",
    "-Wl,-Ttext-segment=0x100000,-z,max-page-size=0x1000,-z,noexecstack,--build-id=none,-e,entry",
)


class Report(NamedTuple):
    """One line of the guest's: its first word, and the numbers behind it by their names."""

    name: str
    numbers: dict[str, int]


def build_kernel(folder: Path) -> Path:
    """Build the guest. Raises: BenchError when it cannot be built."""
    sources = (SOURCES / "entry.S", *sorted(SOURCES.glob("*.c")))
    return _compile(folder / "load.elf", *_BARE, *map(str, sources))


def build_wire(folder: Path) -> Path:
    """Build the program at the host's end of the guest's network. Raises: BenchError."""
    return _compile(folder / "wire", *_HOSTED, str(SOURCES / "host" / "wire.c"))


def _compile(program: Path, *arguments: str) -> Path:
    command = [_COMPILER, *arguments, "-o", str(program)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchError(f"{_COMPILER} cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        raise BenchError(f"{program.name} was not built: {done.stderr.strip()}")
    return program


def step(name: str, *numbers: int) -> str:
    """One word of the guest's command line."""
    return ":".join((name, *map(str, numbers)))


def read_report(line: str) -> Report:
    """Take a line apart; one that says what the guest is ready for has no numbers.

    Raises: BenchError when it says that the guest has failed, or nothing that can be read.
    """
    name, *words = line.split() or ("",)
    if name == READY:
        return Report(line, {})
    pairs = [word.partition("=") for word in words]
    if not name or name == FAILED or not all(value.isdecimal() for _, _, value in pairs):
        raise BenchError(f"The guest said {line!r}, and no step ends so")
    return Report(name, {key: int(value) for key, _, value in pairs})


def cycles_per_us() -> float:
    """How fast a guest's time-stamp counter runs. Raises: HostError where there is no KVM."""
    with Kvm.open() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        return vcpu.get_tsc_khz() / 1000
