"""Persistent memory in a stock guest: found, used as a file system with DAX, flushed, discarded."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.guest.conftest import booted
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel

pytestmark = pytest.mark.guest

MIB = 1 << 20


def make_file(path: Path, size: int, data: bytes) -> Path:
    """A sparse file that begins with some bytes."""
    path.write_bytes(data)
    os.truncate(path, size)
    return path


async def test_files_are_pmem_devices_that_keep_or_discard_what_the_guest_writes(
    place: Path, linux: Kernel
) -> None:
    data = random.Random(7).randbytes(MIB)
    kept = make_file(place / "kept", 64 * MIB, data)
    discarded = make_file(place / "discarded", 16 * MIB, data)
    sections = (f"file={kept}", f"file={discarded},discard_writes=on", f"file={place},size=8M")
    archive = initramfs(linux, "virtio")
    async with booted(place, linux, archive, "--pmem", *sections) as guest:
        sizes = await guest.run("cat /sys/block/pmem?/size")
        assert sizes.split() == [str(mib * 2048) for mib in (64, 16, 8)]
        for name in ("pmem0", "pmem1"):
            seen = await guest.run(f"head -c {MIB} /dev/{name} | md5sum")
            assert seen.split()[0] == hashlib.md5(data, usedforsecurity=False).hexdigest()

        await guest.run(
            "mke2fs -b 4096 /dev/pmem0 2>&1 && mount -t ext4 -o dax /dev/pmem0 /mnt && "
            f"head -c {MIB} /dev/pmem1 > /mnt/file && sync"
        )
        assert "dax=always" in await guest.run("grep /mnt /proc/mounts")
        counters = (await guest.vmm.api("GET", "vm.counters")).json
        assert counters["_pmem0"]["flushes"] > 0
        assert counters["_pmem0"]["flush_errors"] == 0
        assert read_file(kept, "file") == data
        await guest.run("umount /mnt")
        check_file_system(kept)

        await guest.run("dd if=/dev/zero of=/dev/pmem1 bs=64k count=1 oflag=direct conv=fsync")
        zeros = await guest.run("head -c 65536 /dev/pmem1 | md5sum")
        assert zeros.split()[0] == hashlib.md5(bytes(65536), usedforsecurity=False).hexdigest()
        assert discarded.read_bytes()[:MIB] == data

        tree = (await guest.vmm.info())["device_tree"]
        [memory] = tree["_pmem0"]["resources"]
        assert memory["MmioAddressRange"]["size"] == 64 * MIB
        assert f"{memory['MmioAddressRange']['base']:x}-" in await guest.run("cat /proc/iomem")


def read_file(image: Path, name: str) -> bytes:
    """The content of a file in the file system on an image."""
    command = ["debugfs", "-R", f"cat /{name}", str(image)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def check_file_system(image: Path) -> None:
    """The file system on an image has no fault."""
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout
