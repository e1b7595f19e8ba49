"""A recent QEMU from Debian's backports, run from the cache beside whatever the system has.

QEMU runs the nested host by emulating a CPU (TCG), and older ones do that wrong: 7.2 corrupts the
kernels it runs, and up to 10.1 interrupts get lost and nested guests meet triple faults, as
threads change a virtual CPU's pending interrupts without telling each other. It comes with every
library it needs, the C library and its loader included, so it runs on any Debian.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.images import debian

SUITE = "trixie-backports"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"
FIRMWARE = ("usr/share/qemu", "usr/share/seabios")


@dataclass(frozen=True)
class Qemu:
    """A QEMU: run ``command`` with ``environment`` added to the process's own."""

    command: tuple[str, ...]
    environment: dict[str, str]
    version: str


def emulator(*, newest: bool = False) -> Qemu:
    """Return a QEMU that emulates nested virtualisation well enough to rely on it.

    Raises: ImageError: a package could not be fetched (host).
    """
    tree = debian.fetch_whole("qemu-system-x86", SUITE, newest=newest)
    return Qemu(
        command=(
            str(tree / LOADER),
            *("--library-path", str(tree / LIBRARIES)),
            str(tree / "usr/bin/qemu-system-x86_64"),
            *(word for folder in FIRMWARE for word in ("-L", str(tree / folder))),
        ),
        environment={"QEMU_MODULE_DIR": str(tree / LIBRARIES / "qemu")},
        version=debian.version(tree),
    )
