"""Reading the serial log of the nested host: is its kernel broken, and what did it say last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

LOG_NAME: Final = "serial.log"
TAIL_LINES: Final = 30
_OOPS: Final = re.compile(
    rb"Oops: |Oops:\s|BUG: |kernel BUG at|Kernel panic|general protection fault|"
    rb"Unable to handle kernel|invalid opcode: "
)


def has_oops(run_dir: Path) -> bool:
    """Tell whether the kernel of the nested host reported that it is broken."""
    path = run_dir / LOG_NAME
    return path.exists() and _OOPS.search(path.read_bytes()) is not None


def tail(run_dir: Path) -> str:
    """Return the last lines of the log; of a broken kernel, the first of its complaint."""
    path = run_dir / LOG_NAME
    data = path.read_bytes() if path.exists() else b""
    broken = _OOPS.search(data)
    if broken is None:
        lines = data.decode(errors="replace").splitlines()[-TAIL_LINES:]
    else:
        start = data.rfind(b"\n", 0, broken.start()) + 1
        lines = data[start:].decode(errors="replace").splitlines()[:TAIL_LINES]
    return "\n".join(lines) if lines else "(it wrote nothing to its serial port)"
