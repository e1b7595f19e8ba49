"""RAM and balloon of a running stock guest."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, Guest, booted
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel

pytestmark = pytest.mark.guest

MIB = 1 << 20
ONLINE = "for b in /sys/devices/system/memory/memory*/state; do echo online > $b; done"
PATIENCE_S = 60.0


async def total_mib(guest: Guest) -> int:
    return int((await guest.run("grep MemTotal /proc/meminfo")).split()[1]) >> 10


async def wait_for_ram(guest: Guest, at_least_mib: int) -> None:
    """Wait until the guest has taken what was plugged in; nothing tells when it has."""
    with trio.fail_after(PATIENCE_S):
        while True:
            await guest.run(f"{ONLINE} 2>/dev/null || true")
            if await total_mib(guest) >= at_least_mib:
                return
            await trio.sleep(0.2)


async def test_guest_takes_ram_and_gives_some_to_a_balloon_and_keeps_both_over_a_reboot(
    place: Path, linux: Kernel
) -> None:
    archive = initramfs(linux, "virtio")
    options = ("--memory", "size=384M,hotplug_size=512M", "--balloon", "size=0")
    async with booted(place, linux, archive, *options) as guest:
        before = await total_mib(guest)
        await guest.vmm.put("vm.resize", {"desired_ram": 640 * MIB})
        await wait_for_ram(guest, before + 240)
        # More than was there at first.
        await guest.run(
            "mount -t tmpfs -o size=420M none /mnt && dd if=/dev/zero of=/mnt/f bs=1M count=400"
        )
        await guest.run("rm /mnt/f")
        refused = await guest.vmm.api("PUT", "vm.resize", {"desired_ram": 641 * MIB})
        too_much = await guest.vmm.api("PUT", "vm.resize", {"desired_ram": 2048 * MIB})
        await guest.vmm.put("vm.resize", {"desired_balloon": 64 * MIB})
        with trio.fail_after(PATIENCE_S):
            while (await guest.vmm.info())["memory_actual_size"] != 576 * MIB:  # noqa: ASYNC110
                await trio.sleep(0.2)  # The guest takes its time, and no event tells of it.
        config = (await guest.vmm.info())["config"]
        at = len(guest.console.text)
        await guest.console.type("reboot -f\n")
        await guest.console.wait_for("GUEST-READY", BOOT_S, after=at)
        after = await total_mib(guest)

    assert (refused.status, too_much.status) == (400, 400)
    assert "blocks of 134217728 bytes" in refused.body.decode()
    assert "of memory.hotplug_size" in too_much.body.decode()
    assert (config["memory"]["size"], config["balloon"]["size"]) == (640 * MIB, 64 * MIB)
    assert after > before + 150
