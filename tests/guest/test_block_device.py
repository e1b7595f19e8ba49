"""Disks on block devices of the host, and hosts that fail: full, or with a medium that is gone."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.guest.conftest import Guest, booted
from tests.guest.debian import disk, tool
from tools.images.kernels import Kernel

pytestmark = pytest.mark.guest

MIB = 1 << 20
LOOPS = "/dev/loop-control"
SECTOR = 4096
DEVICE_BYTES = 32 * MIB
SMALL_BYTES = 4 * MIB


@contextmanager
def loop_device(backing: Path) -> Iterator[Path]:
    """A block device whose medium is a file."""
    words = ("losetup", "--find", "--show", "--sector-size", str(SECTOR), str(backing))
    device = Path(run(*words).strip())
    try:
        yield device
    finally:
        run("losetup", "--detach", str(device))


@contextmanager
def small_file_system(place: Path) -> Iterator[Path]:
    """A file system with little room."""
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "small", str(place))
    try:
        yield place
    finally:
        run("umount", str(place))


def run(*command: str) -> str:
    """Run a program of the host to its end."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def is_locked(path: Path, at: int) -> bool:
    """Whether a byte of an image is locked by somebody else."""
    with path.open("rb") as image:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
        answer = fcntl.fcntl(image, fcntl.F_OFD_GETLK, asked)
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def allocated(path: Path) -> int:
    """Bytes that the host keeps for a file."""
    return path.stat().st_blocks * 512


def part(path: Path, mib: int) -> bytes:
    """One MiB of a file."""
    return path.read_bytes()[mib * MIB : (mib + 1) * MIB]


def sparse(path: Path, size: int, data: bytes = b"") -> Path:
    """A file of a size that begins with some bytes."""
    path.write_bytes(data)
    os.truncate(path, size)
    return path


async def test_disks_of_the_host_are_used_as_they_are_and_their_failures_survived(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    if not os.access(LOOPS, os.W_OK):
        pytest.skip("this machine has no loop devices")
    data = random.Random(3).randbytes(MIB)
    backing = sparse(place / "whole", DEVICE_BYTES, data)
    shrinking = sparse(place / "shrinking", DEVICE_BYTES, data)
    with ExitStack() as stack:
        device = stack.enter_context(loop_device(backing))
        failing = stack.enter_context(loop_device(shrinking))
        small = stack.enter_context(small_file_system(place / "small"))
        image = sparse(small / "image", 16 * MIB)
        disks = (
            disk(device, direct="on", id="device"),
            disk(failing, lock_granularity="full"),
            disk(image),
        )
        async with booted(place, linux, with_virtio, "--disk", *disks) as guest:
            await check_topology(guest, device)
            await check_content(guest, backing, data)
            assert is_locked(device, DEVICE_BYTES - 1)
            assert not is_locked(device, DEVICE_BYTES)
            assert is_locked(failing, DEVICE_BYTES)
            await check_full_host(guest, image, small)
            await check_lost_medium(guest, shrinking)
            await check_resize_is_refused(guest)
        assert not is_locked(device, 0)


async def check_topology(guest: Guest, device: Path) -> None:
    """The guest sees the sizes that the host's kernel has for the device."""
    names = ("logical_block_size", "physical_block_size", "minimum_io_size", "optimal_io_size")
    host = Path("/sys/block") / device.name / "queue"
    shown = await guest.run("cd /sys/block/vda/queue; cat " + " ".join(names))
    assert shown.split() == [(host / name).read_text().strip() for name in names]
    assert shown.split()[0] == str(SECTOR)
    assert await guest.run("cat /sys/block/vda/size") == f"{DEVICE_BYTES // 512}\n"


async def check_content(guest: Guest, backing: Path, data: bytes) -> None:
    """What the guest writes is on the medium, and what it discards is given back."""
    await guest.run("dd if=/dev/vda of=/dev/vda bs=1M count=1 seek=16 conv=fsync 2>&1")
    assert part(backing, 16) == data
    before = allocated(backing)
    await guest.run(f"blkdiscard -o {16 * MIB} -l {MIB} /dev/vda; sync")
    assert before - allocated(backing) == MIB
    assert part(backing, 16) == bytes(MIB)


WRITE = "dd if=/dev/urandom of=/dev/vdc bs=64k count=128 oflag=direct 2>&1"


async def check_full_host(guest: Guest, image: Path, small: Path) -> None:
    """Writes that the host has no room for are errors; when it has, they succeed."""
    assert "error" in await guest.run(f"{WRITE} || true")
    assert SMALL_BYTES - MIB < allocated(image) <= SMALL_BYTES
    assert b"No space left" in guest.vmm.errors
    await tool("mount", "-o", f"remount,size={8 * SMALL_BYTES}", small)
    assert "error" not in await guest.run(WRITE)
    seen = await guest.run(f"head -c {8 * MIB} /dev/vdc | md5sum")
    host = await tool("sh", "-c", f"head -c {8 * MIB} {image} | md5sum")
    assert seen == host.decode()


async def check_lost_medium(guest: Guest, shrinking: Path) -> None:
    """A device that answers with errors gives the guest errors, and what it still has."""
    os.truncate(shrinking, 8 * MIB)
    read = "dd if=/dev/vdb of=/dev/null bs=64k count=1 iflag=direct 2>&1"
    assert "error" in await guest.run(f"{read} skip=256 || true")
    assert b"Input/output error" in guest.vmm.errors
    assert "error" not in await guest.run(f"{read} skip=1")
    assert "virtio-device:needs-reset" not in guest.vmm.events()


async def check_resize_is_refused(guest: Guest) -> None:
    """Only the host resizes a block device."""
    body = {"id": "device", "desired_size": 16 * MIB}
    reply = await guest.vmm.api("PUT", "vm.resize-disk", body)
    assert reply.status == 400
    assert b"is a block device" in reply.body
    assert (await guest.run("echo alive")) == "alive\n"
