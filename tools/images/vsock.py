"""An initramfs for tests of vsock: the one with virtio drivers, and a program busybox lacks."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from tools.images.cache import ImageError, cache_dir, make_file
from tools.images.cpio import Archive
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel

_SOURCE = Path(__file__).parent / "guest_vsock.c"


def vsock_initramfs(kernel: Kernel) -> Path:
    """Return the initramfs for ``kernel``, in which ``vsock`` is a command; see its source.

    Raises: ImageError: the C compiler is missing or failed, or a package could not be fetched.
    """
    base = initramfs(kernel, "virtio")
    recipe = hashlib.sha256(_SOURCE.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]
    target = cache_dir() / "initramfs" / f"{base.stem}-vsock-{recipe}.cpio"

    def write(path: Path) -> None:
        program = path.with_name("vsock")
        compile_static(_SOURCE, program)
        archive = Archive()
        archive.file("bin/vsock", program.read_bytes(), 0o755)
        # The kernel unpacks archives that follow each other.
        path.write_bytes(base.read_bytes() + archive.encode())

    return make_file(target, write)


def compile_static(source: Path, program: Path) -> None:
    """Make a program that needs no library. Raises: ImageError (host)."""
    command = ["gcc", "-std=gnu11", "-Os", "-Wall", "-Wextra", "-static", "-s"]
    try:
        done = subprocess.run(
            [*command, "-o", str(program), str(source)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise ImageError("gcc is missing; install the package gcc, or run make setup.") from error
    if done.returncode != 0:
        raise ImageError(f"gcc could not make {source.name}: {done.stderr.strip()}")
