"""Add Debian's programs to an archive, each with the libraries that it loads."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from tools.images import debian
from tools.images.cache import ImageError
from tools.images.cpio import Archive

_SUITE = "bookworm"
_LOADER = "lib64/ld-linux-x86-64.so.2"
# Intel, Red Hat's two (virtio), and Amazon: whose numbers a virtual machine shows.
_VENDORS = ("8086", "1af4", "1b36", "1d0f")


class Program(NamedTuple):
    """A program: the package it is in, its path there, and the packages of its libraries."""

    package: str
    path: str
    libraries: tuple[str, ...] = ()


PROGRAMS: Final = {
    "lspci": Program(
        "pciutils",
        "usr/bin/lspci",
        (
            "libpci3",
            "libkmod2",
            "libudev1",
            "libcap2",
            "libssl3",
            "liblzma5",
            "libzstd1",
            "zlib1g",
        ),
    ),
    "lscpu": Program("util-linux", "usr/bin/lscpu", ("libsmartcols1",)),
    "lsmem": Program("util-linux", "usr/bin/lsmem", ("libsmartcols1", "libmount1", "libblkid1")),
    "numactl": Program("numactl", "usr/bin/numactl", ("libnuma1",)),
    "dmidecode": Program("dmidecode", "usr/sbin/dmidecode"),
}


def add_programs(archive: Archive, names: Iterable[str]) -> None:
    """Add programs to ``archive``, in /usr/bin.

    Raises: ImageError: a package could not be fetched, or has changed its libraries (host).
    """
    libraries: dict[str, Path] = {}
    for name in names:
        each = PROGRAMS[name]
        program = debian.fetch(each.package, _SUITE) / each.path
        trees = [debian.fetch(package, _SUITE) for package in ("libc6", *each.libraries)]
        loader = _find(_LOADER, trees)
        archive.file(f"usr/bin/{name}", program.read_bytes(), 0o755)
        libraries |= {path.name: path for path in _needed(program, loader, trees)}
        libraries[loader.name] = loader
        if name == "lspci":
            known = (debian.fetch("pci.ids", _SUITE) / "usr/share/misc/pci.ids").read_text()
            archive.file("usr/share/misc/pci.ids", _only_vendors(known).encode())
    for name, path in sorted(libraries.items()):
        folder = "lib64" if name == Path(_LOADER).name else "lib"
        archive.file(f"{folder}/{name}", path.read_bytes(), 0o755)


def _needed(program: Path, loader: Path, trees: list[Path]) -> list[Path]:
    """Ask the package's own dynamic loader which libraries the program loads."""
    places = [
        tree / part
        for tree in trees
        for part in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
    ]
    listed = subprocess.run(
        [str(loader), "--library-path", ":".join(map(str, places)), "--list", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        raise ImageError(f"The libraries of {program.name} were not found: {listed.stderr.strip()}")
    return [Path(path) for path in re.findall(r"=> (/\S+) \(", listed.stdout)]


def _find(name: str, trees: list[Path]) -> Path:
    for tree in trees:
        if (tree / name).exists():
            return tree / name
    raise ImageError(f"None of {', '.join(map(str, trees))} holds {name} any more.")


def _only_vendors(names: str) -> str:
    """Keep the vendors a virtual machine shows, and the device classes (the list is 1.3 MB)."""
    kept: list[str] = []
    is_kept = False
    for line in names.splitlines():
        if line and not line.startswith(("\t", "#")):
            is_kept = line.startswith(("C ", *_VENDORS))
        if is_kept:
            kept.append(line)
    return "\n".join(kept) + "\n"
