"""The initramfs of the nested host: busybox, two modules, and a script that mounts the image."""

from __future__ import annotations

import lzma
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.images.kernels import Kernel
from tools.nested_host.errors import NestedHostError

INIT: Final = Path(__file__).parent / "inside" / "initramfs-init"
MODULES: Final = ("virtio_blk", "overlay")  # the cloud kernel has all else it needs built in
DIRECTORIES: Final = ("bin", "dev", "image", "layer", "modules", "proc", "root")
TRAILER: Final = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One file of a cpio archive; `device` is major and minor."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def write_initramfs(target: Path, kernel: Kernel, busybox: Path) -> None:
    """Write the initramfs, given where the package busybox-static is unpacked."""
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in DIRECTORIES]
    entries.append(Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    entries.append(Entry("bin/busybox", stat.S_IFREG | 0o755, (busybox / "bin/busybox").read_bytes()))
    entries.append(Entry("init", stat.S_IFREG | 0o755, INIT.read_bytes()))
    for index, name in enumerate(MODULES):
        data = read_module(kernel, name)
        entries.append(Entry(f"modules/{index}-{name}.ko", stat.S_IFREG | 0o644, data))
    target.write_bytes(newc(entries))


def read_module(kernel: Kernel, name: str) -> bytes:
    """Return a kernel module, unpacked."""
    for path in kernel.modules_dir.glob(f"kernel/**/{name}.ko*"):
        data = path.read_bytes()
        return lzma.decompress(data) if path.suffix == ".xz" else data
    raise NestedHostError(f"Linux {kernel.version} has no module {name}; use the 6.12 cloud kernel.")


def newc(entries: list[Entry]) -> bytes:
    """Return a cpio archive in the format `newc`, which the kernel unpacks."""
    archive = bytearray()
    for inode, entry in enumerate([*entries, Entry(TRAILER, 0)], 1):
        name = entry.name.encode() + b"\0"
        fields = (
            inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0,
        )  # fmt: skip
        archive += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        archive += bytes(-len(archive) % 4)
        archive += entry.data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
