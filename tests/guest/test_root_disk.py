"""Debian on a disk: it boots to multi-user, its disks hold what was written, it survives a kill.

A boot by systemd takes a nested host a minute, so one boot serves many checks.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import signal
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, Guest, booted
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel, kernel
from tools.images.rootdisk import root_disk

pytestmark = pytest.mark.guest

MIB = 1 << 20
DATA_MIB = 32
SLOW_S = 240.0
"""How long the longest command in the guest may take."""

GATEWAY, ADDRESS = "192.0.2.1", "192.0.2.2"
NETWORK = f"ip={ADDRESS}::{GATEWAY}:255.255.255.0:::off"

# Files written one after the other, each told of once it is on the disk, beside a load that keeps
# the disk's queue full.
LOAD = (
    "fio --name=load --directory=/root --size=48m --rw=randwrite --bs=4k --iodepth=16 "
    "--ioengine=libaio --direct=1 --time_based --runtime=900 --output=/root/load.log & "
    "for n in $(seq 1000); do head -c 65536 /dev/urandom > new; mv new kept-$n; "
    "sync kept-$n; echo KEPT $n $(md5sum < kept-$n); done\n"
)
KEPT = re.compile(r"^KEPT (\d+) ([0-9a-f]{32}) -$", re.MULTILINE)
ENOUGH_FILES = 4


@pytest.fixture
def root(place: Path) -> Path:
    """A root disk of the test's own."""
    return copy_sparse(root_disk(), place / "root.raw")


def copy_sparse(source: Path, target: Path) -> Path:
    """Copy what a sparse file holds, past the page cache: a nested host reads its share so."""
    size = source.stat().st_size
    with (
        mmap.mmap(-1, MIB) as buffer,
        open(os.open(source, os.O_RDONLY | os.O_DIRECT), "rb", buffering=0) as reader,
        target.open("wb", buffering=0) as writer,
    ):
        writer.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(reader.fileno(), at, os.SEEK_DATA)
            except OSError:  # Nothing but a hole is left.
                break
            end = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
            while at < end:
                got = os.preadv(reader.fileno(), [buffer], at)
                at += os.pwrite(writer.fileno(), memoryview(buffer)[: min(got, end - at)], at)
    return target


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


async def check_multi_user(guest: Guest, image: Kernel) -> None:
    """All of systemd's units came up, and the root is the disk."""
    state = await guest.run("systemctl is-system-running --wait; systemctl --failed --no-legend")
    assert state == "running\n"
    assert await guest.run("systemctl is-active multi-user.target") == "active\n"
    assert (await guest.run("findmnt -n -o SOURCE,FSTYPE /")).split() == ["/dev/vda", "ext4"]
    assert await guest.run("uname -r") == f"{image.version}\n"


async def wait_for_power_off(guest: Guest) -> None:
    """The guest says that it unmounted everything, and the VMM ends as it should."""
    await guest.console.wait_for("GUEST-POWEROFF", BOOT_S)
    assert await guest.vmm.wait(BOOT_S) == 0, guest.vmm.transcript()


async def test_debian_uses_its_disks_and_network_and_powers_off_with_a_clean_root(
    place: Path, linux: Kernel, root: Path
) -> None:
    single, double = place / "single.raw", place / "double.raw"
    for image in (single, double):
        image.touch()
        os.truncate(image, DATA_MIB * MIB)
    options = ["--cpus", "boot=2", "--disk", disk(root), disk(single), disk(double, num_queues=2)]
    options += ["--net", f"ip={GATEWAY},mask=255.255.255.0"]
    async with booted(place, linux, initramfs(linux, "root"), *options, extra=NETWORK) as guest:
        await check_multi_user(guest, linux)
        await check_network(guest)
        await check_data(guest, "vdb", single, jobs=1)
        await check_data(guest, "vdc", double, jobs=2)

        await guest.console.type("systemctl start --no-block poweroff.target\n")
        await wait_for_power_off(guest)
    await check_file_system(root)


async def check_network(guest: Guest) -> None:
    """The guest's address is set at boot, and packets come both ways."""
    assert f"inet {ADDRESS}/24" in await guest.run("ip -4 address show up")
    assert ", 0% packet loss" in await guest.run(f"ping -c 3 -i 0.2 {GATEWAY}")
    assert b", 0% packet loss" in await tool("ping", "-c", "3", "-i", "0.2", ADDRESS)


async def check_data(guest: Guest, name: str, image: Path, jobs: int) -> None:
    """What fio writes in every queue it finds again, and it is in the image."""
    queues = (await guest.run(f"ls /sys/block/{name}/mq")).split()
    assert queues == [str(number) for number in range(jobs)]
    each = DATA_MIB // jobs
    await guest.run(
        f"fio --name=check --filename=/dev/{name} --rw=randwrite --bsrange=4k-64k --size={each}m "
        f"--offset_increment={each}m --numjobs={jobs} --cpus_allowed=0,1 "
        "--cpus_allowed_policy=split --iodepth=16 --ioengine=libaio --direct=1 --verify=crc32c "
        "--verify_fatal=1 --output=/run/fio.log || { cat /run/fio.log; false; }",
        SLOW_S,
    )
    number = (await guest.run(f"basename $(readlink -f /sys/block/{name}/device)")).strip()
    interrupts = await guest.run(f"grep {number}-req /proc/interrupts")
    counts = [sum(map(int, line.split()[1:3])) for line in interrupts.splitlines()]
    assert len(counts) == jobs
    assert all(counts), interrupts

    seen = await guest.run(f"dd if=/dev/{name} bs=1M iflag=direct status=none | md5sum", SLOW_S)
    assert seen.split()[0] == checksum_of_filled(image)


def checksum_of_filled(image: Path) -> str:
    """The checksum of an image that was written all over."""
    data = image.read_bytes()
    assert bytes(MIB) not in data
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


async def test_debian_killed_while_it_writes_keeps_what_it_synced_and_boots_again(
    place: Path, root: Path
) -> None:
    older, newer = kernel("6.1-cloud"), kernel("7-cloud")
    options = ("--disk", disk(root))
    async with booted(place, older, initramfs(older, "root"), *options) as guest:
        await guest.console.type(LOAD)
        await guest.console.wait_for(f"KEPT {ENOUGH_FILES} ", SLOW_S)
        await kill(guest)
        kept = dict(KEPT.findall(guest.console.text))

    assert b"needs_recovery" in await tool("dumpe2fs", "-h", root)
    await tool("e2fsck", "-p", root, allowed=(0, 1))  # 1: it replayed the journal
    await check_file_system(root)
    for number, checksum in kept.items():
        data = await tool("debugfs", "-R", f"cat /root/kept-{number}", root)
        assert hashlib.md5(data, usedforsecurity=False).hexdigest() == checksum
    assert len(kept) >= ENOUGH_FILES - 1

    again = place / "again"  # A killed VMM leaves its serial port's socket, which is not replaced.
    again.mkdir()
    async with booted(again, newer, initramfs(newer, "root"), *options) as guest:
        await check_multi_user(guest, newer)
        seen = await guest.run("md5sum < kept-1")
        assert seen.split()[0] == kept["1"]

        await guest.vmm.put("vm.power-button")
        await wait_for_power_off(guest)
    await check_file_system(root)


async def kill(guest: Guest) -> None:
    """Kill the VMM without a warning, and wait until nothing of it is left."""
    # A nested host hands the VMM's work to another process; the socket tells which one it is.
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(guest.vmm.directory / "api.sock"))
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    os.kill(struct.unpack("3i", credentials)[0], signal.SIGKILL)
    await guest.vmm.wait(BOOT_S)
