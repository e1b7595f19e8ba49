"""Mounting inside the nested host what the host shares with it."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from pathlib import Path
from typing import Any

import trio

NETLINK_KOBJECT_UEVENT = 15
FLAGS = {"ro": 0x1, "bind": 0x1000, "remount": 0x20}


class MountError(Exception):
    """Something could not be mounted."""


class UeventSocket:
    """Tells when the kernel has found, or bound, a device."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT
        )
        self._socket.bind((0, 1))

    async def wait(self) -> None:
        """Return at the next event, or at once for one that came before."""
        await trio.lowlevel.wait_readable(self._socket)
        self._socket.recv(8192)


async def apply_mounts(mounts: list[dict[str, Any]], uevents: UeventSocket) -> None:
    """Make the mounts in order; a virtiofs device that is not there yet is waited for."""
    for entry in mounts:
        make_directories(entry)
        while True:
            code = mount(entry)
            if code == 0:
                break
            # A virtiofs tag is unknown until the kernel has probed the plugged device.
            if entry["type"] != "virtiofs" or code not in (errno.EINVAL, errno.ENOENT):
                raise MountError(f"{entry['target']} was not mounted: {os.strerror(code)}.")
            await uevents.wait()


def make_directories(entry: dict[str, Any]) -> None:
    """Make the place to mount on, and whatever else the mount needs."""
    for directory in (entry["target"], *entry.get("directories", ())):
        Path(directory).mkdir(parents=True, exist_ok=True)


def mount(entry: dict[str, Any]) -> int:
    """Call mount(2) and return 0 or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = 0
    for name in entry.get("flags", ()):
        flags |= FLAGS[name]
    failed = libc.mount(
        entry["source"].encode(),
        entry["target"].encode(),
        entry["type"].encode(),
        ctypes.c_ulong(flags),
        entry.get("options", "").encode() or None,
    )
    return ctypes.get_errno() if failed else 0
