"""The initramfs of the nested host: busybox, two modules, and a script that mounts the image."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tools.images.cpio import Archive
from tools.images.kernels import Kernel
from tools.images.modules import load_order

INIT: Final = Path(__file__).parent / "inside" / "initramfs-init"
MODULES: Final = ("virtio_blk", "overlay")  # the cloud kernel has all else it needs built in
DIRECTORIES: Final = ("dev", "image", "layer", "proc", "root")


def write_initramfs(target: Path, kernel: Kernel, busybox: Path) -> None:
    """Write the initramfs, given where the package busybox-static is unpacked.

    Raises: ImageError: the kernel lacks a module (caller: not a 6.12 cloud kernel).
    """
    archive = Archive()
    for name in DIRECTORIES:
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", (busybox / "bin/busybox").read_bytes(), 0o755)
    archive.file("init", INIT.read_bytes(), 0o755)
    for number, module in enumerate(load_order(kernel.modules_dir, MODULES)):
        archive.file(f"modules/{number}-{module.name}.ko", module.read())
    target.write_bytes(archive.encode())
