"""QEMU 10 from Debian's backports, run from the cache beside whatever the system has.

QEMU runs the nested host; the 7.2 of Debian 12 corrupts kernels when it emulates a CPU (TCG), 10
does not. It needs the shared libraries of Debian 12's own QEMU, which ``make setup`` installs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.images import debian

_SUITE = "bookworm-backports"


@dataclass(frozen=True)
class Qemu:
    """A QEMU: run ``binary`` with ``args`` first and ``environment`` added to the process's own."""

    binary: Path
    args: tuple[str, ...]
    environment: dict[str, str]
    img: Path
    version: str


def qemu10(*, newest: bool = False) -> Qemu:
    """Return QEMU 10 with its firmware and modules.

    Raises: ImageError: a package could not be fetched (host).
    """
    x86, common, data, utils, seabios = (
        debian.fetch(package, _SUITE, newest=newest)
        for package in (
            "qemu-system-x86",
            "qemu-system-common",
            "qemu-system-data",
            "qemu-utils",
            "seabios",
        )
    )
    firmware = (data / "usr/share/qemu", seabios / "usr/share/seabios")
    return Qemu(
        binary=x86 / "usr/bin/qemu-system-x86_64",
        args=tuple(word for path in firmware for word in ("-L", str(path))),
        environment={"QEMU_MODULE_DIR": str(common / "usr/lib/x86_64-linux-gnu/qemu")},
        img=utils / "usr/bin/qemu-img",
        version=debian.version(x86),
    )
