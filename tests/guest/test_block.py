"""Disks in a stock guest: found, read, written, given back, locked, resized."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from tests.guest.conftest import BOOT_S, Guest, booted, words
from tools.images.kernels import Kernel
from vmm.testing.process import VmmProcess, arguments_for

pytestmark = pytest.mark.guest

MIB = 1 << 20
DISK = "/sys/block/vda"


@pytest.fixture
def data() -> bytes:
    """What the disks begin with: nothing that repeats."""
    return random.Random(7).randbytes(MIB)


def make_image(path: Path, size: int, data: bytes) -> Path:
    """A sparse image that begins with some bytes."""
    path.write_bytes(data)
    os.truncate(path, size)
    return path


def checksum(data: bytes) -> str:
    """As md5sum in the guest shows it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


async def shows(guest: Guest, *names: str) -> list[str]:
    """What the guest's kernel says of the disk."""
    return (await guest.run("cat " + " ".join(f"{DISK}/{name}" for name in names))).split()


async def test_disk_is_what_its_image_is_and_keeps_what_the_guest_writes(
    place: Path, linux: Kernel, with_virtio: Path, data: bytes
) -> None:
    image = make_image(place / "disk.raw", 64 * MIB, data)
    other = make_image(place / "fixed.raw", 8 * MIB, data)
    disk = f"path={image},image_type=raw,num_queues=2,queue_size=64,serial=system"
    fixed = f"path={other},image_type=raw,readonly=on,id=fixed"
    options = ("--cpus", "boot=2", "--disk", disk, fixed)
    async with booted(place, linux, with_virtio, *options) as guest:
        names = ("size", "ro", "queue/logical_block_size", "queue/write_cache", "serial")
        facts = [str(64 * 2048), "0", "512", "write", "back", "system"]
        assert await shows(guest, *names) == facts
        assert (await guest.run(f"ls {DISK}/mq")).split() == ["0", "1"]
        assert (await guest.run("blockdev --getro /dev/vdb")).strip() == "1"
        for device in ("vda", "vdb"):
            found = await guest.run(f"head -c {MIB} /dev/{device} | md5sum")
            assert found.split()[0] == checksum(data)

        # Written out of the page cache, and past it, at two places.
        copy = "dd if=/dev/vdb of=/dev/vda bs=64k count=16"
        await guest.run(f"{copy} seek=64 conv=fsync; {copy} seek=512 oflag=direct")
        refused = await guest.run("dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>&1; echo done")
        assert "done" in refused
        await guest.run("sync")
        for at in (4 * MIB, 32 * MIB):
            assert image.read_bytes()[at : at + MIB] == data
        assert other.read_bytes()[:MIB] == data

        before = image.stat().st_blocks
        await guest.run(f"blkdiscard -o {32 * MIB} -l {MIB} /dev/vda; sync")
        assert before - image.stat().st_blocks == MIB // 512
        assert image.read_bytes()[32 * MIB : 33 * MIB] == bytes(MIB)

        counters = (await guest.vmm.api("GET", "vm.counters")).json
        assert set(counters) == {"_disk0", "fixed"}
        assert counters["_disk0"]["write_bytes"] >= 2 * MIB
        assert counters["fixed"]["read_bytes"] >= MIB
        assert counters["fixed"]["write_ops"] == 0


async def test_resized_disk_is_seen_at_once_and_its_new_end_can_be_used(
    place: Path, linux: Kernel, with_virtio: Path, data: bytes
) -> None:
    image = make_image(place / "disk.raw", 8 * MIB, data)
    disk = f"path={image},image_type=raw,direct=on,id=root"
    async with booted(place, linux, with_virtio, "--disk", disk) as guest:
        await guest.vmm.put("vm.resize-disk", {"id": "root", "desired_size": 16 * MIB})

        assert await shows(guest, "size") == [str(16 * 2048)]
        await guest.run("dd if=/dev/vda of=/dev/vda bs=1M count=1 seek=15 conv=fsync")
        assert image.read_bytes()[15 * MIB :] == data
        for body, status in (
            ({"id": "root", "desired_size": 1000}, 400),
            ({"id": "absent", "desired_size": MIB}, 404),
            ({"id": "__rng", "desired_size": MIB}, 400),
        ):
            assert (await guest.vmm.api("PUT", "vm.resize-disk", body)).status == status
        assert (await guest.run("echo alive")) == "alive\n"


async def test_detected_raw_disk_keeps_its_first_sector_and_refuses_a_second_user(
    place: Path, linux: Kernel, with_virtio: Path, data: bytes
) -> None:
    image = make_image(place / "disk.raw", 8 * MIB, data)
    async with booted(place, linux, with_virtio, "--disk", f"path={image}") as guest:
        first = "dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=fsync 2>&1 || echo REFUSED"
        assert "REFUSED" in await guest.run(first)
        await guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=1 conv=fsync 2>&1")
        assert image.read_bytes()[:8192] == data[:4096] + bytes(4096)

        payload = arguments_for(linux.vmlinux, with_virtio, words())
        options = ("--serial", "off", "--console", "off", "--disk", f"path={image}")
        async with VmmProcess.start(place, *payload, *options) as second:
            assert await second.wait(BOOT_S) == 1
            assert b"another instance likely holds a lock" in second.errors
        assert (await guest.run("head -c 512 /dev/vda | md5sum")).split()[0] == checksum(data[:512])
