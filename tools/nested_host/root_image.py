"""The root file system of the nested host: Debian packages, Python packages, our inner programs.

Made with mmdebstrap and `mkfs.ext4 -d`, without a loop device and, where user namespaces are
permitted, without root. It is attached read-only, so any number of hosts share one image.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.images import debian
from tools.images.cache import cache_dir, exclusive, make_file, make_tree
from tools.images.kernels import Kernel
from tools.images.mirror import machine_sources, source_for, to_deb822
from tools.nested_host.errors import NestedHostError
from tools.nested_host.initramfs import write_initramfs

PACKAGES: Final = (
    "acpica-tools", "bash", "busybox-static", "coreutils", "dash", "e2fsprogs", "findutils",
    "grep", "hostname", "iperf3", "iproute2", "iputils-ping", "kmod", "libc-bin", "login", "mount",
    "ncat", "passwd", "pciutils", "procps", "python3", "qemu-system-x86", "qemu-utils", "sed",
    "strace", "swtpm", "util-linux",
)  # fmt: skip
EXCLUDED: Final = ("doc", "info", "locale", "man", "perl", "iso-codes", "xml")
# Tools of the developer, which no command inside needs, and what they alone bring.
LEFT_OUT: Final = frozenset(
    {
        *("ast-serialize", "librt", "mypy", "pip", "ruff", "setuptools", "wheel"),
        *("charset-normalizer", "graphql-core", "harfile", "hypothesis-graphql", "jsonschema-rs"),
        *("markdown-it-py", "mdurl", "pyrate-limiter", "requests", "rich", "schemathesis"),
        "urllib3",
    }
)
PROJECT: Final = "trio-vmm"
INSIDE: Final = Path(__file__).parent / "inside"
IMAGE_BYTES: Final = 2 << 30
PYTHON: Final = (3, 11)
LAUNCHED: Final = {"pytest": "pytest", "vmm": "vmm"}


@dataclass(frozen=True)
class RootImage:
    """A root image and the initramfs that mounts it; `key` names the content of both."""

    image: Path
    initramfs: Path
    key: str


def root_image(kernel: Kernel) -> RootImage:
    """Return the root image for a kernel, made first if the cache has none like it.

    Raises: NestedHostError: a program is missing, or one failed (host).
    """
    distributions = list(python_packages())
    key = image_key(kernel, distributions)
    folder = cache_dir() / "nested-host" / "images" / key
    with exclusive("nested-host-image"):
        if not folder.exists():
            print("nested host: making its root image …", file=sys.stderr, flush=True)
        make_tree(folder, lambda path: fill_image(path, kernel, distributions))
    return RootImage(folder / "root.ext4", folder / "initramfs", key)


def python_packages() -> Iterator[importlib.metadata.Distribution]:
    """List the third-party packages of the environment that runs this."""
    if sys.version_info[:2] != PYTHON:
        raise NestedHostError(
            f"The nested host has Python 3.11 and this is {sys.version_info[0]}."
            f"{sys.version_info[1]}: make the project's environment with python3.11."
        )
    for distribution in importlib.metadata.distributions():
        name = distribution.name.lower().replace("_", "-")
        if name not in LEFT_OUT and name != PROJECT and not name.startswith("types-"):
            yield distribution


def image_key(kernel: Kernel, distributions: list[importlib.metadata.Distribution]) -> str:
    """Name the content of an image by everything it is made from."""
    digest = hashlib.sha256()
    digest.update(repr((PACKAGES, kernel.version, IMAGE_BYTES)).encode())
    digest.update(repr(sorted((d.name, d.version) for d in distributions)).encode())
    sources = [*INSIDE.iterdir(), Path(__file__), Path(__file__).with_name("initramfs.py")]
    for source in sorted(path for path in sources if path.is_file()):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def fill_image(
    folder: Path, kernel: Kernel, distributions: list[importlib.metadata.Distribution]
) -> None:
    """Make `root.ext4` and `initramfs` in a folder."""
    with tempfile.TemporaryDirectory(prefix="nested-host-", dir=folder) as scratch:
        root = Path(scratch) / "root"
        root.mkdir(mode=0o755)
        # As the user who runs this: every file becomes root's when the file system is made.
        command = ("tar", "-xf", str(debian_archive()), "-C", str(root))
        run(*command, "--no-same-owner", "--exclude=./dev/*")
        install_python_packages(root, distributions)
        install_inside(root, kernel)
        make_file_system(root, folder / "root.ext4")
    write_initramfs(folder / "initramfs", kernel, debian.fetch("busybox-static", "bookworm"))


def debian_archive() -> Path:
    """Return an archive of the Debian packages and all they depend on; nothing of them ran."""
    name = hashlib.sha256(repr((PACKAGES, EXCLUDED)).encode()).hexdigest()[:16]
    return make_file(cache_dir() / "nested-host" / "debian" / f"{name}.tar", unpack_debian)


def unpack_debian(archive: Path) -> None:
    """Write the archive of the Debian packages."""
    source = source_for("bookworm", machine_sources())
    if source is None:
        raise NestedHostError("No Debian mirror for bookworm is known; add one to /etc/apt.")
    sources = archive.with_name("debian.sources")
    sources.write_text(to_deb822(source))
    # No script of a package runs, so that without root no chroot, thus no namespace, is needed.
    mode = "root" if os.geteuid() == 0 else "chrootless"
    run(
        "mmdebstrap", f"--mode={mode}", "--variant=extract",
        "--quiet", f"--include={','.join(PACKAGES)}", "--aptopt=APT::Install-Recommends false",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in EXCLUDED),
        "bookworm", str(archive), str(sources),
        package="mmdebstrap",
    )  # fmt: skip


def install_python_packages(
    root: Path, distributions: list[importlib.metadata.Distribution]
) -> None:
    """Copy this environment's third-party packages, compiled, into /opt/venv."""
    site = root / "opt/venv/lib/python3.11/site-packages"
    for distribution in distributions:
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
                continue
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    for folder in (site, root / "usr/lib/python3.11"):
        compileall.compile_dir(
            folder, quiet=2, stripdir=str(root), prependdir="/", workers=os.cpu_count() or 1
        )


def install_inside(root: Path, kernel: Kernel) -> None:
    """Copy our own programs, the kernel's modules, and a few files Debian's scripts would make."""
    venv = root / "opt/venv"
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    (venv / "pyvenv.cfg").write_text(
        "home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n"
    )
    (venv / "bin/python3.11").symlink_to("/usr/bin/python3.11")
    shutil.copy(INSIDE / "launcher.py", venv / "bin/python")
    (venv / "bin/python").chmod(0o755)
    (venv / "bin/python3").symlink_to("python")
    for name, module in LAUNCHED.items():
        script = venv / "bin" / name
        script.write_text(f'#!/bin/sh\nexec /opt/venv/bin/python -m {module} "$@"\n')
        script.chmod(0o755)
    inside = root / "opt/nested/nested_inside"
    inside.mkdir(parents=True)
    for source in INSIDE.glob("*.py"):
        shutil.copy(source, inside)
    shutil.copy(INSIDE / "init", root / "opt/nested/init")
    (root / "opt/nested/init").chmod(0o755)
    modules = root / "lib/modules" / kernel.version
    shutil.copytree(kernel.modules_dir, modules, ignore=shutil.ignore_patterns("build", "source"))
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    )
    (root / "etc/group").write_text("root:x:0:\ntty:x:5:\nkvm:x:106:\nnogroup:x:65534:\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost nested\n::1 localhost\n")


def make_file_system(root: Path, image: Path) -> None:
    """Write a directory as an ext4 image whose files are all root's."""
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    command = ["mkfs.ext4", "-q", "-O", "^has_journal", "-d", str(root), str(image)]
    if os.geteuid() != 0:
        command[:0] = ["unshare", "--user", "--map-root-user"]
    run(*command, package="e2fsprogs")


def run(*command: str, package: str | None = None) -> None:
    """Run a program of the host. Raises NestedHostError when it is missing or fails."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
        )
    except FileNotFoundError as error:
        raise NestedHostError(
            f"{command[0]} is not installed; apt-get install {package or command[0]}."
        ) from error
    if done.returncode != 0:
        raise NestedHostError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
