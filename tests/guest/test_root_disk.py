"""Debian on a disk: it boots to multi-user, its disks hold what was written, it survives a kill.

A boot by systemd takes a nested host a minute, so one boot serves many checks.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import Guest, booted
from tests.guest.debian import (
    ADDRESS,
    GATEWAY,
    NETWORK,
    SLOW_S,
    check_file_system,
    check_multi_user,
    check_ping,
    disk,
    kill,
    tool,
    wait_for_power_off,
)
from tests.guest.terminal import opened, read_until
from tools.images.initramfs import initramfs
from tools.images.kernels import RELEASES, kernel
from tools.images.rootdisk import root_disk
from tools.images.sparse import MIB, copy_sparse

pytestmark = pytest.mark.guest

VCPUS = 4
DATA_MIB = 32
TRIMMED_MIB = 16

MTU = 9000
ICMP_HEADERS = 28
ADDRESS_6, GATEWAY_6 = "fd77::2", "fd77::1"
IPERF_PORT, IPERF_S = 5201, 2

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


@pytest.mark.parametrize("release", RELEASES)
async def test_debian_uses_all_its_devices_and_powers_off_with_a_clean_root(
    place: Path, release: str, root: Path
) -> None:
    linux = kernel(release)
    single, several = place / "single.raw", place / "several.raw"
    for image in (single, several):
        image.touch()
        os.truncate(image, DATA_MIB * MIB)
    disks = [disk(root), disk(single), disk(several, num_queues=VCPUS)]
    options = ["--cpus", f"boot={VCPUS}", "--disk", *disks]
    options += ["--net", f"tap=deb0,ip={GATEWAY},mask=255.255.255.0,mtu={MTU},num_queues=4"]
    archive = initramfs(linux, "root")
    async with booted(
        place, linux, archive, *options, virtio_console="pty", extra=NETWORK
    ) as guest:
        await check_multi_user(guest, linux)
        await check_login(guest)
        await check_entropy(guest)
        await check_ping(guest)
        await check_network(guest)
        await check_data(guest, "vdb", single, jobs=1)
        await check_data(guest, "vdc", several, jobs=VCPUS)
        await check_trim(guest, root)
        await check_zeroes(guest, "vdb", single)

        await guest.console.type("systemctl start --no-block poweroff.target\n")
        await wait_for_power_off(guest)
    await check_file_system(root)


async def check_login(guest: Guest) -> None:
    """Root logs in on the virtio console."""
    path = (await guest.vmm.info())["config"]["console"]["file"]
    with opened(path) as terminal:
        os.write(terminal, b"\r")  # Whoever comes late has missed the first prompt.
        await read_until(terminal, b"login: ")
        os.write(terminal, b"root\r")
        await read_until(terminal, b"# ")
        os.write(terminal, b"echo $((6 * 7)) on $(tty)\r")
        await read_until(terminal, b"42 on /dev/hvc0\r\n")


async def check_entropy(guest: Guest) -> None:
    """The kernel draws from the entropy device, and it gives different bytes each time."""
    assert await guest.run("cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0\n"
    draw = "head -c 32 /dev/hwrng | md5sum"
    assert await guest.run(draw) != await guest.run(draw)


async def check_network(guest: Guest) -> None:
    """Large packets, two pairs of queues, both families of addresses, and streams both ways."""
    name = (await guest.run("ls /sys/class/net | grep -v ^lo$")).strip()
    await tool("ip", "address", "add", f"{GATEWAY_6}/64", "dev", "deb0", "nodad")
    await guest.run(f"ip address add {ADDRESS_6}/64 dev {name} nodad")

    assert await guest.run(f"cat /sys/class/net/{name}/mtu") == f"{MTU}\n"
    whole = f"ping -M do -c 2 -i 0.2 -s {MTU - ICMP_HEADERS}"
    assert ", 0% packet loss" in await guest.run(f"{whole} {GATEWAY}")
    assert b", 0% packet loss" in await tool(*whole.split(), ADDRESS)
    assert ", 0% packet loss" in await guest.run(f"ping -6 -c 2 -i 0.2 {GATEWAY_6}")
    assert b", 0% packet loss" in await tool("ping", "-6", "-c", "2", "-i", "0.2", ADDRESS_6)

    # A processor sends by the pair of queues that is its own.
    for cpu in (0, VCPUS - 1):
        await guest.run(f"taskset -c {cpu} ping -c 2 -i 0.2 {GATEWAY}")
    ways = itertools.product((ADDRESS, ADDRESS_6), ((), ("--reverse",)))
    for port, (address, way) in enumerate(ways, IPERF_PORT):
        # A server that has served a client says nothing when it is ready for another.
        await guest.run(f"iperf3 --server --one-off --daemon --port {port}")
        assert await stream_bytes(address, port, *way) > MIB
    device = await guest.run(f"basename $(readlink -f /sys/class/net/{name}/device)")
    await check_interrupts(guest, [f"{device.strip()}-{way}" for way in ("input", "output")], 2)


async def stream_bytes(address: str, port: int, *way: str) -> int:
    """Have iperf3 send over several streams for a while; how much came in."""
    words = ["--client", address, "--port", str(port), "--parallel", "4", "--json", *way]
    words += ["--time", str(IPERF_S)]
    with trio.fail_after(SLOW_S):
        while True:
            report = json.loads(await tool("iperf3", *words, allowed=(0, 1)))
            if "error" not in report:
                return int(report["end"]["sum_received"]["bytes"])
            # It says nothing when it listens.
            assert "Connection refused" in report["error"], report["error"]
            await trio.sleep(0.5)


async def check_data(guest: Guest, name: str, image: Path, jobs: int) -> None:
    """What fio writes in every queue it finds again, and it is in the image."""
    queues = (await guest.run(f"ls /sys/block/{name}/mq")).split()
    assert queues == [str(number) for number in range(jobs)]
    each = DATA_MIB // jobs
    await guest.run(
        f"fio --name=check --filename=/dev/{name} --rw=randwrite --bsrange=4k-64k --size={each}m "
        f"--offset_increment={each}m --numjobs={jobs} --cpus_allowed=0-{VCPUS - 1} "
        "--cpus_allowed_policy=split --iodepth=16 --ioengine=libaio --direct=1 --verify=crc32c "
        "--verify_fatal=1 --output=/run/fio.log || { cat /run/fio.log; false; }",
        SLOW_S,
    )
    device = await guest.run(f"basename $(readlink -f /sys/block/{name}/device)")
    await check_interrupts(guest, [f"{device.strip()}-req"], jobs)

    seen = await guest.run(f"dd if=/dev/{name} bs=1M iflag=direct status=none | md5sum", SLOW_S)
    assert seen.split()[0] == checksum_of_filled(image)


async def check_interrupts(guest: Guest, names: Sequence[str], queues: int) -> None:
    """Each of a device's queues of these names has interrupted."""
    for name in names:
        lines = (await guest.run(f"grep -F {name}. /proc/interrupts")).splitlines()
        counts = [sum(map(int, line.split()[1 : VCPUS + 1])) for line in lines]
        assert len(counts) == queues, lines
        assert all(counts), lines


def checksum_of_filled(image: Path) -> str:
    """The checksum of an image that was written all over."""
    data = image.read_bytes()
    assert bytes(MIB) not in data
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


async def check_trim(guest: Guest, root: Path) -> None:
    """The host gets back the room of a file that the guest removed and trimmed."""
    await guest.run(f"head -c {TRIMMED_MIB}M /dev/urandom > /root/removed && sync", SLOW_S)
    before = allocated(root)
    await guest.run("rm /root/removed && sync && fstrim /", SLOW_S)
    assert before - allocated(root) > 0.9 * TRIMMED_MIB * MIB


async def check_zeroes(guest: Guest, name: str, image: Path) -> None:
    """The guest has the beginning of a full disk zeroed, without sending any zeros."""
    assert int(await guest.run(f"cat /sys/block/{name}/queue/write_zeroes_max_bytes")) > 0
    before = await written_bytes(guest)
    await guest.run(f"blkdiscard --zeroout --length {DATA_MIB // 2}MiB /dev/{name}")
    assert await written_bytes(guest) == before
    check_halves(image)


async def written_bytes(guest: Guest) -> int:
    """What the guest has written to its second disk."""
    counters = (await guest.vmm.api("GET", "vm.counters")).json
    return int(counters["_disk1"]["write_bytes"])


def check_halves(image: Path) -> None:
    """The first half of an image is zeros, the second is not."""
    data = image.read_bytes()
    assert not any(data[: len(data) // 2])
    assert bytes(MIB) not in data[len(data) // 2 :]


def allocated(image: Path) -> int:
    """Bytes that the host keeps for an image."""
    return image.stat().st_blocks * 512


async def test_debian_killed_while_it_writes_keeps_what_it_synced_and_boots_again(
    place: Path, root: Path
) -> None:
    older, newer = kernel("6.1-cloud"), kernel("7-cloud")
    options = ("--disk", disk(root), "--net", f"ip={GATEWAY},mask=255.255.255.0")
    archive = initramfs(older, "root")
    async with booted(place, older, archive, *options, extra=NETWORK) as guest:
        await check_ping(guest)
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
    archive = initramfs(newer, "root")
    async with booted(again, newer, archive, *options, extra=NETWORK) as guest:
        await check_multi_user(guest, newer)
        await check_ping(guest)
        seen = await guest.run("md5sum < kept-1")
        assert seen.split()[0] == kept["1"]

        await guest.vmm.put("vm.power-button")
        await wait_for_power_off(guest)
    await check_file_system(root)
