"""What the nested host sees of this one: the checkout and the cache to read, results to write.

One virtiofsd exports a tree that is put together by bind mounts in a mount namespace of its own;
what is read-only is so on this side already, whatever the kernel inside does.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.images.cache import cache_dir
from tools.nested_host.processes import owned_process

VIRTIOFSD: Final = "/usr/lib/qemu/virtiofsd"
TAG: Final = "shares"
SHARES: Final = "/run/nested/shares"
LAYERS: Final = "/run/nested/layers"
PYCACHE: Final = "/run/nested/pycache"
COMPILED: Final = ("vmm", "tools", "tests")


@dataclass(frozen=True)
class Shares:
    """The folders of this host that are seen inside, at the same paths."""

    checkout: Path
    results: Path

    @property
    def cache(self) -> Path:
        """Return the image cache."""
        return cache_dir()

    @property
    def pycache(self) -> Path:
        """Return where the project's modules are compiled for the inside."""
        return cache_dir() / "nested-host" / "pycache"

    def environment(self) -> dict[str, str]:
        """Return the environment a command inside starts with."""
        return {
            "PATH": "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(self.checkout),
            "PYTHONPYCACHEPREFIX": PYCACHE,
            "TRIO_VMM_HOST": "direct",  # inside, the KVM that is there is the one to use
            "TRIO_VMM_INSIDE_NESTED_HOST": "1",
            "TRIO_VMM_CACHE": str(self.cache),
            "TRIO_VMM_RESULTS": str(self.results),
        }

    def mount_request(self) -> dict[str, Any]:
        """Return what the agent is asked to mount, in order."""
        mounts = [{"type": "virtiofs", "source": TAG, "target": SHARES}]
        mounts.append(overlay("checkout", str(self.checkout)))
        if (self.checkout / ".venv").is_dir():
            mounts.append(bind("/opt/venv", str(self.checkout / ".venv")))
        mounts.append(overlay("pycache", PYCACHE))
        mounts.append(bind(f"{SHARES}/cache", str(self.cache)))
        mounts.append(bind(f"{SHARES}/results", str(self.results)))
        return {"mounts": mounts, "time_of_day": time.time()}


def bind(source: str, target: str) -> dict[str, Any]:
    """Describe a bind mount."""
    return {"type": "none", "source": source, "target": target, "flags": ["bind"]}


def overlay(share: str, target: str) -> dict[str, Any]:
    """Describe a writable layer in memory over a share."""
    upper, work = f"{LAYERS}/{share}/upper", f"{LAYERS}/{share}/work"
    options = f"lowerdir={SHARES}/{share},upperdir={upper},workdir={work}"
    return {
        "type": "overlay", "source": share, "target": target, "options": options,
        "directories": [upper, work],
    }  # fmt: skip


def tree_script(shares: Shares, tree: Path, fd: int) -> str:
    """Return the shell script that puts the tree together and becomes virtiofsd."""
    lines = ["set -e"]
    for name, source, is_writable in (
        ("checkout", shares.checkout, False),
        ("cache", shares.cache, False),
        ("pycache", shares.pycache, False),
        ("results", shares.results, True),
    ):
        place = shlex.quote(str(tree / name))
        lines.append(f"mkdir {place}")
        lines.append(f"mount --bind {shlex.quote(str(source))} {place}")
        if not is_writable:
            lines.append(f"mount -o remount,bind,ro {place}")
    lines.append(
        f"exec {VIRTIOFSD} --fd={fd} -o source={shlex.quote(str(tree))} -o cache=always"
        " -o sandbox=chroot"
    )
    return "\n".join(lines)


@asynccontextmanager
async def virtiofsd(shares: Shares, run_dir: Path) -> AsyncIterator[Path]:
    """Serve the shares for the length of a block; yields the socket to give QEMU."""
    tree = run_dir / "tree"
    tree.mkdir()
    path = run_dir / "virtiofsd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        script = tree_script(shares, tree, listener.fileno())
        command = ["unshare", *user, "--mount", "--propagation", "private", "sh", "-c", script]
        async with owned_process(
            command,
            log=run_dir / "virtiofsd.log",
            package="qemu-system-common",
            pass_fds=[listener.fileno()],
        ):
            yield path


@asynccontextmanager
async def compiled_checkout(shares: Shares, run_dir: Path) -> AsyncIterator[None]:
    """Compile the project's modules while the block runs; at its end they are compiled."""
    shares.pycache.mkdir(parents=True, exist_ok=True)
    folders = [str(shares.checkout / name) for name in COMPILED]
    command = [sys.executable, "-X", f"pycache_prefix={shares.pycache}", "-m", "compileall", "-q"]
    async with owned_process(
        [*command, *folders],
        log=run_dir / "compileall.log",
        package="python3",
        environment={"PYTHONDONTWRITEBYTECODE": ""},
    ) as process:
        yield
        await process.wait()
