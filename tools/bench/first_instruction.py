"""From the command line to the guest's first instruction, and to the end of a guest that stops.

Beside the time stands the processor time, which says the same on a busy host with less noise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tools.bench import qemu
from tools.bench.guests import SIGN_OF_LIFE, Guests, write_guests
from tools.bench.processes import launched, python, vmm
from tools.bench.series import Claim, Contender, Result, Sample, race

FIRST = "vmm, PVH kernel"
IMPORTS = "python, import trio, pydantic"
NOTHING = "python, nothing"
QEMU_FIRMWARE = "QEMU microvm, firmware"
QEMU_KERNEL = "QEMU microvm, PVH kernel"
QEMU_Q35 = "QEMU q35, firmware"

CPU = ", CPU"
TO_EXIT = ", to exit"
"""Follows the name of a VMM where the time is to its end, which the guest asks for at once."""

TARGET = 1.3
"""The first instruction against the imports that any program of this kind must do."""

CLAIMS = (
    Claim(FIRST, IMPORTS, target=TARGET),
    Claim(FIRST + CPU, IMPORTS + CPU, target=TARGET),
    Claim(FIRST, QEMU_FIRMWARE),
    Claim(FIRST, QEMU_KERNEL),
    Claim(FIRST, QEMU_Q35),
    Claim(FIRST + TO_EXIT, QEMU_KERNEL + TO_EXIT),
)


def vmm_arguments(kernel: Path) -> tuple[str, ...]:
    """The VMM's arguments for a kernel whose debug port is on stdout."""
    return ("--kernel", str(kernel), "--debug-console", "tty", "--serial", "off")


def measure(rounds: int) -> Result:
    """Race the VMM against the imports it cannot do without, and against QEMU."""
    with tempfile.TemporaryDirectory() as folder:
        guests = write_guests(Path(folder))
        return race(
            "first-instruction",
            "From exec to the guest's first instruction",
            _contenders(guests),
            CLAIMS,
            rounds,
        )


def _contenders(guests: Guests) -> list[Contender]:
    firmware = ("-bios", str(guests.firmware))
    kernel = ("-kernel", str(guests.power_off))
    in_qemu = {
        QEMU_FIRMWARE: qemu.command(*firmware),
        QEMU_KERNEL: qemu.command(*kernel),
        QEMU_Q35: qemu.command(*firmware, machine="q35"),
    }
    return [
        Contender("vmm", partial(_run_vmm, guests.power_off)),
        Contender(IMPORTS, to_exit(IMPORTS, *python("-c", "import trio, pydantic"))),
        Contender(NOTHING, to_exit(NOTHING, *python("-c", "pass"))),
        *(
            Contender(name, partial(_run_qemu, name, command), required=False)
            for name, command in in_qemu.items()
        ),
    ]


def _run_vmm(kernel: Path) -> Iterator[Sample]:
    with launched(*vmm(*vmm_arguments(kernel))) as launch:
        yield Sample(FIRST, "ms", launch.ms_to_byte(SIGN_OF_LIFE))
        yield Sample(FIRST + CPU, "ms", launch.cpu_ms)
        yield Sample(FIRST + TO_EXIT, "ms", launch.ms_to_exit(0))


def _run_qemu(name: str, command: tuple[str, ...]) -> Iterator[Sample]:
    with launched(*command) as launch:
        yield Sample(name, "ms", launch.ms_to_byte(SIGN_OF_LIFE))
        yield Sample(name + CPU, "ms", launch.cpu_ms)
        yield Sample(name + TO_EXIT, "ms", launch.ms_to_exit(qemu.EXIT_CODE))


def to_exit(name: str, *command: str) -> Callable[[], Iterator[Sample]]:
    """Make a measurement of a program that ends by itself: its time, and its processor time."""

    def run() -> Iterator[Sample]:
        with launched(*command) as launch:
            yield Sample(name, "ms", launch.ms_to_exit(0))
            yield Sample(name + CPU, "ms", launch.cpu_ms)

    return run
