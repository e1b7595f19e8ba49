"""Add Debian's lspci to an archive: the program, the libraries it loads, and a few names."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tools.images import debian
from tools.images.cache import ImageError
from tools.images.cpio import Archive

_SUITE = "bookworm"
_LIBRARIES = (
    "libc6",
    "libpci3",
    "libkmod2",
    "libudev1",
    "libcap2",
    "libssl3",
    "liblzma5",
    "libzstd1",
    "zlib1g",
)
_LOADER = "lib64/ld-linux-x86-64.so.2"
# Intel, Red Hat's two (virtio), and Amazon: whose numbers a virtual machine shows.
_VENDORS = ("8086", "1af4", "1b36", "1d0f")


def add_lspci(archive: Archive) -> None:
    """Add lspci to ``archive``.

    Raises: ImageError: a package could not be fetched, or has changed its libraries (host).
    """
    program = debian.fetch("pciutils", _SUITE) / "usr/bin/lspci"
    trees = [debian.fetch(package, _SUITE) for package in _LIBRARIES]
    archive.file("usr/bin/lspci", program.read_bytes(), 0o755)
    loader = _find(_LOADER, trees)
    archive.file(_LOADER, loader.read_bytes(), 0o755)
    for library in _needed(program, loader, trees):
        archive.file(f"lib/{library.name}", library.read_bytes(), 0o755)
    names = (debian.fetch("pci.ids", _SUITE) / "usr/share/misc/pci.ids").read_text()
    archive.file("usr/share/misc/pci.ids", _only_vendors(names).encode())


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
        raise ImageError(f"The libraries of lspci were not found: {listed.stderr.strip()}")
    return [Path(path) for path in re.findall(r"=> (/\S+) \(", listed.stdout)]


def _find(name: str, trees: list[Path]) -> Path:
    for tree in trees:
        if (tree / name).exists():
            return tree / name
    raise ImageError(f"None of {', '.join(_LIBRARIES)} holds {name} any more.")


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
