"""The guest's initramfs: busybox, the modules a variant wants, and an init.

``guest_init.sh`` runs a script: it says what it prints and which words of the kernel command line
it obeys. ``root_init.sh``, of the variant ``root``, hands over to the root disk of ``rootdisk.py``.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.images import debian
from tools.images.cache import ImageError, cache_dir, make_file
from tools.images.cpio import Archive
from tools.images.kernels import Kernel
from tools.images.modules import load_order
from tools.images.programs import add_programs

_HERE = Path(__file__).parent
_SOURCES = ("guest_init.sh", "root_init.sh", "initramfs.py", "cpio.py", "modules.py", "programs.py")

# ACPI_BUTTON and evdev are modules in the stock kernels: without them nothing hears the button.
_POWER_BUTTON = ("button", "evdev")
_VIRTIO = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "virtio_mem",
    "virtio_pmem",
    "nd_pmem",
    "virtio_input",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "pvpanic-pci",
    "qemu_fw_cfg",
    "overlay",
)
# Modules that came with a kernel later than the oldest one here.
_VIRTIO_SINCE_6_12 = ("virtio_iommu",)
# What a disk's own init finds loaded; ext4 is built into every kernel here, and named all the same.
_ROOT = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "ext4",
)


@dataclass(frozen=True)
class Variant:
    """What one kind of initramfs holds on top of busybox and init."""

    modules: tuple[str, ...]
    modules_since_6_12: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    init: str = "guest_init.sh"


VARIANTS = {
    "minimal": Variant(_POWER_BUTTON),
    "virtio": Variant((*_POWER_BUTTON, *_VIRTIO), _VIRTIO_SINCE_6_12),
    "demo": Variant(_POWER_BUTTON, programs=("lspci",)),
    "views": Variant(
        (*_POWER_BUTTON, *_VIRTIO),
        _VIRTIO_SINCE_6_12,
        programs=("lscpu", "lsmem", "numactl", "dmidecode"),
    ),
    "root": Variant((*_POWER_BUTTON, *_ROOT), init="root_init.sh"),
}


def initramfs(kernel: Kernel, variant: str = "minimal") -> Path:
    """Return an uncompressed initramfs for ``kernel``, made if the cache has none.

    Raises: ImageError: no such variant (caller), or a package could not be fetched (host).
    """
    if variant not in VARIANTS:
        raise ImageError(f"There is no initramfs {variant!r}; known are {', '.join(VARIANTS)}.")
    busybox = debian.fetch("busybox-static", "bookworm")
    recipe = hashlib.sha256(f"{busybox.name} {kernel.modules_dir}".encode())
    for name in _SOURCES:
        recipe.update((_HERE / name).read_bytes())
    target = (
        cache_dir() / "initramfs" / f"{kernel.version}-{variant}-{recipe.hexdigest()[:12]}.cpio"
    )
    chosen = VARIANTS[variant]
    return make_file(target, lambda path: _write(path, kernel, chosen, busybox))


def with_script(image: Path, script: str, target: Path) -> Path:
    """Write to ``target`` the initramfs ``image`` and a script that init runs when it is ready.

    For scripts too long for the command line: the kernel unpacks archives that follow each other.
    """
    extra = Archive()
    extra.file("script", script.encode(), 0o755)
    target.write_bytes(image.read_bytes() + extra.encode())
    return target


def guest_words(run: str | None = None, then: str | None = None) -> str:
    """Return words for the kernel command line: a script to run, and what init does after it.

    ``then`` is shell, wait, poweroff or reboot; left out, poweroff after a script, else a shell.
    """
    words = []
    if run is not None:
        words.append(f"run={base64.b64encode(run.encode()).decode()}")
    if then is not None:
        words.append(f"then={then}")
    return " ".join(words)


@dataclass(frozen=True)
class RunResult:
    """What the guest's script printed, and its exit code."""

    output: str
    exit_code: int


def run_result(console: str) -> RunResult | None:
    """Find the outcome of the guest's script in its console output, None if it did not end."""
    text = console.replace("\r\n", "\n")
    found = re.search(
        r"^GUEST-RUN-BEGIN\n(.*?)^GUEST-RUN-END (\d+)$", text, re.DOTALL | re.MULTILINE
    )
    return None if found is None else RunResult(found[1], int(found[2]))


def _write(path: Path, kernel: Kernel, variant: Variant, busybox: Path) -> None:
    archive = Archive()
    for name in ("dev", "etc", "mnt", "modules", "proc", "root", "run", "sys", "tmp", "var/log"):
        archive.directory(name)
    # The kernel opens the console for init before init can mount anything.
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3)
    archive.file("init", (_HERE / variant.init).read_bytes(), 0o755)
    _add_busybox(archive, busybox / "bin" / "busybox")
    archive.file("etc/acpi/PWRF/00000080", b"#!/bin/sh\nkill -USR2 1\n", 0o755)
    archive.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
    archive.file("etc/profile", b"export PS1='guest:\\w# '\n")
    names = variant.modules
    if not kernel.version.startswith("6.1."):
        names = (*names, *variant.modules_since_6_12)
    for number, module in enumerate(load_order(kernel.modules_dir, names)):
        archive.file(f"modules/{number:02}-{module.name}.ko", module.read())
    add_programs(archive, variant.programs)
    path.write_bytes(archive.encode())


def _add_busybox(archive: Archive, binary: Path) -> None:
    """Add busybox and a link for every command it has (made here: the guest boots sooner)."""
    archive.file("bin/busybox", binary.read_bytes(), 0o755)
    listed = subprocess.run([str(binary), "--list"], capture_output=True, text=True, check=True)
    for command in listed.stdout.split():
        if command != "busybox":
            archive.symlink(f"bin/{command}", "busybox")
