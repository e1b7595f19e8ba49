"""Stock Debian cloud kernels: the bzImage as shipped, the vmlinux inside it, and the modules."""

from __future__ import annotations

import lzma
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.images import debian
from tools.images.cache import ImageError, cache_dir, make_file, make_tree

# Which suite ships each kernel; the metapackage's name is the same in all of them.
_SUITES = {
    "6.1-cloud": "bookworm",
    "6.12-cloud": "bookworm-backports",
    "7-cloud": "trixie-backports",
}
RELEASES = tuple(_SUITES)
_METAPACKAGE = "linux-image-cloud-amd64"

# Fields of the x86 boot protocol's setup header (Linux Documentation/arch/x86/boot.rst).
_SETUP_SECTS = 0x1F1
_HEADER_MAGIC = 0x202
_PAYLOAD_OFFSET = 0x248
_SECTOR_BYTES = 512

_XZ_MAGIC = b"\xfd7zX"
_DECOMPRESSORS = {
    b"\x02\x21\x4c\x18": "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
}


@dataclass(frozen=True)
class Kernel:
    """One stock kernel: ``version`` is what ``uname -r`` says, ``modules_dir`` has modules.dep."""

    version: str
    vmlinuz: Path
    vmlinux: Path
    modules_dir: Path


def kernel(release: str, *, newest: bool = False) -> Kernel:
    """Return a stock kernel by release (``RELEASES``), from the cache or else from the mirror.

    Raises: ImageError: no such release (caller), or it could not be fetched or cut (host).
    """
    if release not in _SUITES:
        raise ImageError(f"There is no kernel {release!r}; known are {', '.join(RELEASES)}.")
    trees = list(_kernel_trees(_METAPACKAGE, _SUITES[release], newest))
    vmlinuz = _only(trees, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
    if vmlinuz.parent.name == "boot":
        version = vmlinuz.name.removeprefix("vmlinuz-")
    else:
        version = vmlinuz.parent.name
    home = cache_dir() / "kernels" / trees[0].name
    vmlinux = make_file(home / "vmlinux", lambda path: cut_vmlinux(vmlinuz, path))
    return Kernel(version, vmlinuz, vmlinux, _modules_dir(trees, version, home))


def _kernel_trees(package: str, suite: str, newest: bool) -> Iterator[Path]:
    """Yield where a kernel package and the kernel packages it depends on are unpacked."""
    tree = debian.fetch(package, suite, newest=newest)
    yield tree
    for name in debian.depends(tree):
        # From 7 on a kernel is split: linux-image depends on linux-binary, -modules and -base.
        if name.startswith("linux-") and "cloud" in name:
            yield from _kernel_trees(name, suite, newest)


def _only(trees: list[Path], *patterns: str) -> Path:
    """Return the one path that matches a pattern in the trees, the first pattern that any does."""
    for pattern in patterns:
        found = sorted({path for tree in trees for path in tree.glob(pattern)})
        if found:
            return found[-1]
    raise ImageError(f"The kernel package has no {' or '.join(patterns)}.")


def _modules_dir(trees: list[Path], version: str, home: Path) -> Path:
    """Return one directory with the modules of all the packages, and what depmod makes of them."""
    directory = Path("lib") / "modules" / version

    def fill(root: Path) -> None:
        (root / directory).mkdir(parents=True)
        for name in ("kernel", "modules.builtin", "modules.builtin.modinfo", "modules.order"):
            found = _only(trees, f"{directory}/{name}", f"usr/{directory}/{name}")
            (root / directory / name).symlink_to(found)
        _run("depmod", "-b", str(root), version)

    return make_tree(home / "root", fill) / directory


def cut_vmlinux(vmlinuz: Path, target: Path) -> None:
    """Write the ELF kernel that ``vmlinuz`` holds compressed to ``target``.

    Raises: ImageError: not a bzImage, or compressed in a way not known here.
    """
    image = vmlinuz.read_bytes()
    if image[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise ImageError(f"{vmlinuz} is not a bzImage: it has no setup header.")
    setup_sectors = image[_SETUP_SECTS] or 4
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_OFFSET)
    start = (setup_sectors + 1) * _SECTOR_BYTES + offset
    payload = image[start : start + length]
    elf = _decompress(payload, vmlinuz)
    if not elf.startswith(b"\x7fELF"):
        raise ImageError(f"{vmlinuz} holds no ELF kernel.")
    target.write_bytes(elf)


def _decompress(payload: bytes, vmlinuz: Path) -> bytes:
    if payload[:4] == _XZ_MAGIC:
        try:
            return lzma.LZMADecompressor().decompress(payload)
        except lzma.LZMAError as error:
            raise ImageError(f"{vmlinuz} is damaged: {error}") from error
    tool = _DECOMPRESSORS.get(payload[:4])
    if tool is None:
        raise ImageError(f"{vmlinuz} is compressed in an unknown way ({payload[:4].hex()}).")
    # The build appends the size, which these tools take for the start of another frame.
    return _run(tool, "-dc", stdin=payload[:-4])


def _run(*command: str, stdin: bytes = b"") -> bytes:
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            check=False,
            # depmod is among the administrator's tools, which a user's PATH leaves out.
            env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
        )
    except FileNotFoundError as error:
        raise ImageError(f"{command[0]} is not installed; 'make setup' installs it.") from error
    if done.returncode != 0:
        raise ImageError(f"{command[0]} failed: {done.stderr.decode().strip()}")
    return done.stdout
