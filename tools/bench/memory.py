"""What a VMM with an idle guest of 512 MiB takes of the host's memory, its guest's pages included.

The guest has touched almost none of its RAM. Private is what goes away when the process ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tools.bench import qemu
from tools.bench.connection import first_connection
from tools.bench.first_instruction import vmm_arguments
from tools.bench.guests import SIGN_OF_LIFE, write_guests
from tools.bench.processes import Launch, launched, python, vmm
from tools.bench.series import Claim, Contender, Result, Sample, race

WITHOUT_API = "vmm"
WITH_API = "vmm with the API"
IMPORTS = "python, trio and pydantic"
API_IMPORTS = "python, the API stack"
QEMU = "QEMU microvm"

CLAIMS = tuple(
    Claim(f"{mine}: {kind}", f"{other}: {kind}")
    for kind in ("private", "resident")
    for mine, other in (
        (WITHOUT_API, QEMU),
        (WITH_API, QEMU),
        (WITHOUT_API, IMPORTS),
        (WITH_API, API_IMPORTS),
    )
)

_STAY = "import os, signal; os.write(1, b'G'); signal.pause()"


def measure(rounds: int) -> Result:
    """Compare idle VMMs, and what their imports alone take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kernel = write_guests(folder).idle
        imports = python("-c", f"import trio; from pydantic import BaseModel; {_STAY}")
        api_imports = python(
            "-c",
            "import trio, quart_trio, hypercorn.trio; from pydantic import BaseModel; " + _STAY,
        )
        without_api = vmm(*vmm_arguments(kernel))
        contenders = [
            Contender("vmm", partial(_idle, WITHOUT_API, without_api)),
            Contender("vmm", partial(_idle_with_api, kernel, folder / "socket")),
            Contender(IMPORTS, partial(_idle, IMPORTS, imports)),
            Contender(API_IMPORTS, partial(_idle, API_IMPORTS, api_imports)),
            Contender(
                QEMU,
                partial(_idle, QEMU, qemu.command("-kernel", str(kernel))),
                required=False,
            ),
        ]
        return race("memory", "Memory of an idle VMM", contenders, CLAIMS, rounds)


def _idle(name: str, command: tuple[str, ...]) -> Iterator[Sample]:
    with launched(*command) as launch:
        launch.ms_to_byte(SIGN_OF_LIFE)
        yield from _footprint(name, launch)


def _idle_with_api(kernel: Path, socket: Path) -> Iterator[Sample]:
    socket.unlink(missing_ok=True)
    command = vmm("--api-socket", str(socket), *vmm_arguments(kernel))
    with launched(*command) as launch:
        launch.ms_to_byte(SIGN_OF_LIFE)
        with first_connection(socket, launch) as connection:
            connection.ping()
        yield from _footprint(WITH_API, launch)


def _footprint(name: str, launch: Launch) -> Iterator[Sample]:
    rollup = Path(f"/proc/{launch.process.pid}/smaps_rollup").read_text()
    sizes = mapped_kib(rollup)
    private = sizes["Private_Clean"] + sizes["Private_Dirty"]
    yield Sample(f"{name}: private", "MiB", private / 1024)
    yield Sample(f"{name}: resident", "MiB", sizes["Rss"] / 1024)


def mapped_kib(rollup: str) -> dict[str, int]:
    """Read the sums of a process's smaps_rollup: kind of page to KiB."""
    lines = (line.partition(":") for line in rollup.splitlines()[1:])
    return {name: int(value.split()[0]) for name, _, value in lines}
