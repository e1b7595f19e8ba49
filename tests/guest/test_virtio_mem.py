"""Memory that a running stock guest plugs and unplugs by virtio-mem, and where it sees it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, Guest, booted
from tests.guest.debian import vmm_pid
from tests.guest.test_memory import HUGE_PAGES, huge_pages  # noqa: F401  a fixture
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel, kernel
from vmm.testing.console import GuestConsole
from vmm.testing.process import VmmProcess

pytestmark = pytest.mark.guest

MIB = 1 << 20
PATIENCE_S = 150.0
NODES = "/sys/devices/system/node"
MOVABLE = "memhp_default_state=online_movable"
"""Have the guest take what is plugged at once, and in such a way that it can give it back."""
GROWING = "hotplug_method=virtio-mem"


async def total_mib(guest: Guest, node: int | None = None) -> int:
    """What the guest counts as its memory, or as that of a node."""
    place = "/proc/meminfo" if node is None else f"{NODES}/node{node}/meminfo"
    match = re.search(r"MemTotal: +(\d+) kB", await guest.run(f"grep MemTotal {place}"))
    assert match is not None
    return int(match[1]) >> 10


async def wait_for_size(guest: Guest, mib: int) -> None:
    """Wait until the VMM counts so much; the guest takes its time, and no event tells of it."""
    with trio.fail_after(PATIENCE_S):
        while (await guest.vmm.info())["memory_actual_size"] != mib * MIB:  # noqa: ASYNC110
            await trio.sleep(0.2)


async def wait_for_total(guest: Guest, mib: int, node: int | None = None) -> None:
    """Wait until the guest counts so much: it puts online what it has plugged already."""
    with trio.fail_after(PATIENCE_S):
        while await total_mib(guest, node) != mib:  # noqa: ASYNC110  nothing tells
            await trio.sleep(0.2)


async def wait_for_reboot(guest: Guest) -> None:
    """Have the guest reset itself, and wait until it is up again."""
    at = len(guest.console.text)
    await guest.console.type("reboot -f\n")
    await guest.console.wait_for("GUEST-READY", BOOT_S, after=at)
    await guest.run("stty -echo")


async def online_blocks(guest: Guest) -> int:
    """How many blocks of 128 MiB the guest has online."""
    states = await guest.run("cat /sys/devices/system/memory/memory*/state")
    return states.split().count("online")


async def wait_for_blocks(guest: Guest, count: int) -> None:
    """Wait until the guest has so many blocks online."""
    with trio.fail_after(PATIENCE_S):
        while await online_blocks(guest) != count:  # noqa: ASYNC110  nothing tells
            await trio.sleep(0.2)


def resident_mib(guest: Guest) -> int:
    """What the process of the VMM holds of this host's memory."""
    text = Path(f"/proc/{vmm_pid(guest)}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert match is not None
    return int(match[1]) >> 10


@pytest.mark.parametrize("version", ["6.1-cloud", "6.12-cloud"])
async def test_guest_grows_and_shrinks_and_keeps_its_size_over_a_reboot(
    place: Path, version: str
) -> None:
    image = kernel(version)
    archive = initramfs(image, "virtio")
    options = ("--memory", f"size=384M,{GROWING},hotplug_size=512M", "--balloon", "size=0")
    async with booted(place, image, archive, *options, extra=MOVABLE) as guest:
        before = await total_mib(guest)
        blocks = await online_blocks(guest)
        await guest.vmm.put("vm.resize", {"desired_ram": 768 * MIB})
        await wait_for_size(guest, 768)
        await wait_for_total(guest, before + 384)
        grown_blocks = await online_blocks(guest)
        # More than was there at first.
        await guest.run(
            "mount -t tmpfs -o size=500M none /mnt && dd if=/dev/zero of=/mnt/f bs=1M count=480",
            seconds=PATIENCE_S,
        )
        full = resident_mib(guest)
        await guest.run("rm /mnt/f; umount /mnt")
        await guest.vmm.put("vm.resize", {"desired_ram": 512 * MIB})
        await wait_for_size(guest, 512)
        await wait_for_total(guest, before + 128)
        less = resident_mib(guest)
        config = (await guest.vmm.info())["config"]["memory"]
        await wait_for_reboot(guest)
        await wait_for_size(guest, 512)
        await wait_for_total(guest, before + 128)
        sizes = {"desired_ram": 640 * MIB, "desired_balloon": 64 * MIB}
        await guest.vmm.put("vm.resize", sizes)
        await wait_for_size(guest, 576)

    assert grown_blocks - blocks == 3
    assert full - less > 150, (full, less)
    assert (config["size"], config["hotplugged_size"]) == (384 * MIB, 128 * MIB)


async def test_sizes_that_cannot_be_are_refused_and_change_nothing(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    options = ("--memory", f"size=256M,{GROWING},hotplug_size=128M,hotplugged_size=64M")
    async with booted(place, linux, with_virtio, *options, extra=MOVABLE) as guest:
        await wait_for_size(guest, 320)
        before = (await guest.vmm.info())["config"]
        answers = {
            size: await guest.vmm.api("PUT", "vm.resize", {"desired_ram": size})
            for size in (255 * MIB, 257 * MIB, 386 * MIB)
        }
        zone = await guest.vmm.api(
            "PUT", "vm.resize-zone", {"id": "mem0", "desired_ram": 320 * MIB}
        )
        await guest.vmm.put("vm.resize", {"desired_ram": 320 * MIB})
        after = (await guest.vmm.info())["config"]

    assert {size >> 20: answer.status for size, answer in answers.items()} == {
        255: 400,
        257: 400,
        386: 400,
    }
    assert b"that were there at boot stay" in answers[255 * MIB].body
    assert b"grows in blocks of 2097152 bytes" in answers[257 * MIB].body
    assert b"its hotplug_size is 134217728" in answers[386 * MIB].body
    assert (zone.status, b"none, use vm.resize" in zone.body) == (404, True)
    assert before == after


async def test_zones_grow_and_shrink_in_their_numa_nodes(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    async with booted(
        place,
        linux,
        with_virtio,
        *("--cpus", "boot=2", "--memory", f"size=0,{GROWING}", "--memory-zone"),
        "id=near,size=256M,hotplug_size=256M",
        f"id=far,size=128M,hotplug_size=256M,hotplugged_size=128M,shared=on,file={place}",
        "--numa",
        "guest_numa_id=0,cpus=[0],memory_zones=[near],distances=[1@25]",
        "guest_numa_id=1,cpus=[1],memory_zones=[far]",
        extra=MOVABLE,
    ) as guest:
        await wait_for_size(guest, 512)
        await wait_for_blocks(guest, 4)
        near, far = [await total_mib(guest, node) for node in (0, 1)]
        for zone, size in (("near", 384), ("far", 320)):
            await guest.vmm.put("vm.resize-zone", {"id": zone, "desired_ram": size * MIB})
        await wait_for_size(guest, 704)
        await wait_for_total(guest, near + 128, node=0)
        await wait_for_total(guest, far + 64, node=1)
        await guest.vmm.put("vm.resize-zone", {"id": "far", "desired_ram": 128 * MIB})
        await wait_for_size(guest, 512)
        await wait_for_total(guest, near + 128, node=0)
        await wait_for_total(guest, far - 128, node=1)
        zones = (await guest.vmm.info())["config"]["memory"]["zones"]
        ask = {"id": "near", "desired_ram": 384 * MIB}
        same = await guest.vmm.api("PUT", "vm.resize-zone", ask)
        whole = await guest.vmm.api("PUT", "vm.resize", {"desired_ram": 512 * MIB})
        await wait_for_reboot(guest)
        await wait_for_size(guest, 512)
        await wait_for_total(guest, near + 128, node=0)
        await wait_for_total(guest, far - 128, node=1)
        sections = await guest.run(f"ls -d {NODES}/node*/memory[0-9]*")
        tree = (await guest.vmm.info())["device_tree"]

    assert sections.count("/node0/memory") == 3
    assert [zone.get("hotplugged_size") for zone in zones] == [128 * MIB, None]
    assert (same.status, whole.status) == (400, 400)
    assert b"already; give another size" in same.body
    assert b"use vm.resize-zone" in whole.body
    assert {"near", "far", "_virtio-pci-near"} <= set(tree)


async def fill(guest: Guest) -> str:
    """Have more in RAM than was there at boot, and say what."""
    await wait_for_size(guest, 384)
    await wait_for_blocks(guest, 3)
    await guest.run("mount -t tmpfs -o size=240M none /mnt")
    # A slow processor makes few bytes at random, and copies many.
    await guest.run("dd if=/dev/urandom of=/tmp/f bs=1M count=4", PATIENCE_S)
    await guest.run("for i in $(seq 55); do cat /tmp/f || exit; done > /mnt/f", PATIENCE_S)
    assert int(await guest.run("wc -c < /mnt/f")) == 220 * MIB
    return await guest.run("md5sum /mnt/f", PATIENCE_S)


async def check_grows_and_shrinks(guest: Guest, content: str) -> None:
    """What ``fill`` left is there, and the guest plugs and unplugs around it."""
    assert await guest.run("md5sum /mnt/f", PATIENCE_S) == content
    assert (await guest.vmm.info())["memory_actual_size"] == 384 * MIB
    total = await total_mib(guest)
    await guest.vmm.put("vm.resize", {"desired_ram": 512 * MIB})
    await wait_for_size(guest, 512)
    await wait_for_total(guest, total + 128)
    assert await guest.run("md5sum /mnt/f", PATIENCE_S) == content
    await guest.run("rm /mnt/f")
    await guest.vmm.put("vm.resize", {"desired_ram": 256 * MIB})
    await wait_for_size(guest, 256)
    await wait_for_total(guest, total - 128)


@pytest.mark.parametrize("mode", ["copy", "ondemand"])
async def test_restored_guest_has_what_it_had_plugged_and_grows_and_shrinks_on(
    mode: str, place: Path, linux: Kernel, with_virtio: Path
) -> None:
    folder, again = place / "snapshot", place / "again"
    for each in (folder, again):
        each.mkdir()
    options = ("--memory", f"size=256M,{GROWING},hotplug_size=256M,hotplugged_size=128M")
    async with booted(place, linux, with_virtio, *options, extra=MOVABLE) as guest:
        content = await fill(guest)
        await guest.vmm.put("vm.pause")
        await guest.vmm.put("vm.snapshot", {"destination_url": f"file://{folder}"})

    restore = f"source_url=file://{folder},resume=on,memory_restore_mode={mode}"
    async with VmmProcess.start(again, "--restore", restore, api=True) as vmm:
        await vmm.wait_until_served(BOOT_S)
        async with GuestConsole.connect(place / "serial.sock") as console:
            await check_grows_and_shrinks(Guest(vmm, console), content)


async def test_moved_guest_has_what_it_had_plugged_and_grows_and_shrinks_on(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    (place / "again").mkdir()
    url = f"unix:{place}/move.sock"
    options = ("--memory", f"size=256M,shared=on,{GROWING},hotplug_size=2G,hotplugged_size=128M")
    async with (
        booted(place, linux, with_virtio, *options, extra=MOVABLE) as guest,
        VmmProcess.start(place / "again", api=True) as vmm,
        trio.open_nursery() as nursery,
    ):
        content = await fill(guest)
        await vmm.wait_until_served(BOOT_S)
        nursery.start_soon(vmm.put, "vm.receive-migration", {"receiver_url": url})
        await vmm.wait_for_event("vm:migration-receive-ready", PATIENCE_S)
        # Both are on one host, and the socket of the serial port has one name.
        (place / "serial.sock").rename(place / "old.sock")
        await guest.vmm.put("vm.send-migration", {"destination_url": url})
        await guest.vmm.wait(PATIENCE_S)
        async with GuestConsole.connect(place / "serial.sock") as console:
            moved = Guest(vmm, console)
            assert resident_mib(moved) < 600  # Of the room nothing came that is not plugged.
            await check_grows_and_shrinks(moved, content)


@pytest.mark.usefixtures("huge_pages")
async def test_zone_of_huge_pages_takes_and_gives_them_back_and_does_without(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    reserved = int(HUGE_PAGES.read_text())
    options = ("--memory", f"size=256M,{GROWING}")
    zone = "id=huge,size=2M,hugepages=on,hotplug_size=128M"
    async with booted(
        place, linux, with_virtio, *options, "--memory-zone", zone, extra=MOVABLE
    ) as guest:
        free = [free_huge_pages()]
        for size in (130, 2):
            await guest.vmm.put("vm.resize-zone", {"id": "huge", "desired_ram": size * MIB})
            await wait_for_size(guest, 256 + size)
            free.append(free_huge_pages())
        # Somebody else takes what the guest gave back.
        HUGE_PAGES.write_text(str(reserved - free_huge_pages()))
        await guest.vmm.put("vm.resize-zone", {"id": "huge", "desired_ram": 130 * MIB})
        with trio.fail_after(PATIENCE_S):
            while "huge does not grow" not in guest.vmm.transcript():  # noqa: ASYNC110
                await trio.sleep(0.2)
        without = (await guest.vmm.info())["memory_actual_size"]
        HUGE_PAGES.write_text(str(reserved))
        await guest.vmm.put("vm.resize-zone", {"id": "huge", "desired_ram": 66 * MIB})
        await wait_for_size(guest, 256 + 66)

    assert [free[0] - free[1], free[2] - free[1]] == [64, 64]
    assert without == 258 * MIB


def free_huge_pages() -> int:
    """How many huge pages of 2 MiB the host has that nobody uses."""
    return int(HUGE_PAGES.with_name("free_hugepages").read_text())
