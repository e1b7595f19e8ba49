"""Debian on a disk as a guest: what tests boot it with, and what must be so of every boot."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import trio

from tests.guest.conftest import BOOT_S, Guest
from tools.images.kernels import Kernel

SLOW_S = 240.0
"""How long the longest command in the guest may take."""

GATEWAY, ADDRESS = "192.0.2.1", "192.0.2.2"
NETWORK = f"ip={ADDRESS}::{GATEWAY}:255.255.255.0:::off"
"""Words for the kernel: the first network card has this address from the boot on."""


class Shell(Protocol):
    """A guest, or just its console: commands can be run there."""

    async def run(self, command: str, seconds: float = ...) -> str: ...


def disk(path: Path, **options: object) -> str:
    """One disk for the command line."""
    words = {"path": path, "image_type": "raw", **options}
    return ",".join(f"{name}={value}" for name, value in words.items())


async def tool(*command: str | Path, allowed: Sequence[int] = (0,)) -> bytes:
    """Run a program beside the VMM and return what it says."""
    done = await trio.run_process(
        [str(word) for word in command], capture_stdout=True, capture_stderr=True, check=False
    )
    assert done.returncode in allowed, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout


async def check_file_system(image: Path) -> None:
    """The file system on an image has no fault, and needs no repair."""
    await tool("e2fsck", "-fn", image)
    features = await tool("dumpe2fs", "-h", image)
    assert b"needs_recovery" not in features


async def check_multi_user(guest: Shell, image: Kernel) -> None:
    """All of systemd's units came up, and the root is the disk."""
    state = await guest.run("systemctl is-system-running --wait; systemctl --failed --no-legend")
    assert state == "running\n"
    assert await guest.run("systemctl is-active multi-user.target") == "active\n"
    assert (await guest.run("findmnt -n -o SOURCE,FSTYPE /")).split() == ["/dev/vda", "ext4"]
    assert await guest.run("uname -r") == f"{image.version}\n"


async def check_ping(guest: Guest) -> None:
    """The guest's address is set at boot, and packets come both ways."""
    assert f"inet {ADDRESS}/24" in await guest.run("ip -4 address show up")
    assert ", 0% packet loss" in await guest.run(f"ping -c 3 -i 0.2 {GATEWAY}")
    assert b", 0% packet loss" in await tool("ping", "-c", "3", "-i", "0.2", ADDRESS)


async def wait_for_power_off(guest: Guest) -> None:
    """The guest says that it unmounted everything, and the VMM ends as it should."""
    await guest.console.wait_for("GUEST-POWEROFF", BOOT_S)
    assert await guest.vmm.wait(BOOT_S) == 0, guest.vmm.transcript()


def vmm_pid(guest: Guest) -> int:
    """The process of the VMM."""
    # A nested host hands the VMM's work to another process; the socket tells which one it is.
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(guest.vmm.directory / "api.sock"))
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[0])


async def kill(guest: Guest) -> None:
    """Kill the VMM without a warning, and wait until nothing of it is left."""
    os.kill(vmm_pid(guest), signal.SIGKILL)
    await guest.vmm.wait(BOOT_S)
