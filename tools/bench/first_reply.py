"""From the command line to the first reply of the API."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tools.bench import qemu
from tools.bench.connection import first_connection
from tools.bench.first_instruction import CPU, to_exit, vmm_arguments
from tools.bench.guests import write_guests
from tools.bench.processes import launched, python, vmm
from tools.bench.series import Claim, Contender, Result, Sample, race

ALONE = "vmm"
WITH_GUEST = "vmm with a guest"
IMPORTS = "python, import the API stack"
QEMU = "QEMU microvm, QMP"

TARGET = 1.2
"""The first reply against the import of what serves it."""

CLAIMS = (
    Claim(ALONE, IMPORTS, target=TARGET),
    Claim(ALONE + CPU, IMPORTS + CPU, target=TARGET),
    Claim(WITH_GUEST, IMPORTS),
    Claim(ALONE, QEMU),
)


def measure(rounds: int) -> Result:
    """Race the VMM's API against the imports under it, and against QEMU's monitor."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        guests = write_guests(folder)
        socket = folder / "socket"
        imports = python("-c", "import trio, pydantic, quart_trio, hypercorn.trio")
        with_guest = ("--api-socket", str(socket), *vmm_arguments(guests.idle))
        contenders = [
            Contender("vmm", partial(_first_ping, ALONE, socket, "--api-socket", str(socket))),
            Contender("vmm", partial(_first_ping, WITH_GUEST, socket, *with_guest)),
            Contender(IMPORTS, to_exit(IMPORTS, *imports)),
            Contender("QEMU", partial(_first_qmp_reply, guests.idle, socket), required=False),
        ]
        title = "From exec to the first API reply"
        return race("first-reply", title, contenders, CLAIMS, rounds)


def _first_ping(name: str, socket: Path, *arguments: str) -> Iterator[Sample]:
    socket.unlink(missing_ok=True)
    with launched(*vmm(*arguments)) as launch, first_connection(socket, launch) as connection:
        connection.ping()
        yield Sample(name, "ms", launch.elapsed_ms)
        yield Sample(name + CPU, "ms", launch.cpu_ms)


def _first_qmp_reply(kernel: Path, socket: Path) -> Iterator[Sample]:
    socket.unlink(missing_ok=True)
    command = qemu.command("-kernel", str(kernel), *qemu.with_monitor(socket))
    with launched(*command) as launch, first_connection(socket, launch) as connection:
        qemu.greet(connection)
        yield Sample(QEMU, "ms", launch.elapsed_ms)
