"""Console, balloon and panic register, used by the drivers of a stock kernel.

No Debian kernel has a driver for the watchdog's private type or for the virtio clock: of these a
guest only sees that they are there.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, Guest, machine, words
from tests.guest.terminal import PATIENCE_S, opened, read_until
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel
from vmm.testing.console import GuestConsole
from vmm.testing.process import VmmProcess

pytestmark = pytest.mark.guest

MIB = 1 << 20
RAM = 512 * MIB
BALLOON = 128 * MIB
LARGE_BALLOON = 256 * MIB


@pytest.fixture(scope="session")
def archive(linux: Kernel) -> Path:
    """An initramfs whose init loads every virtio driver."""
    return initramfs(linux, "virtio")


@asynccontextmanager
async def booted(
    place: Path, linux: Kernel, archive: Path, **sections: object
) -> AsyncIterator[Guest]:
    """Boot a guest with more devices to a shell on its serial console."""
    serial = place / "serial.sock"
    config = machine(
        linux,
        archive,
        words(then="shell"),
        serial={"mode": "Socket", "socket": str(serial)},
        **sections,
    )
    async with VmmProcess.start(place, api=True) as vmm:
        await vmm.wait_until_served(BOOT_S)
        await vmm.put("vm.create", config)
        await vmm.put("vm.boot")
        async with GuestConsole.connect(serial) as console:
            await console.wait_for("GUEST-READY", BOOT_S)
            assert "GUEST-MODULE-FAILED" not in console.text
            guest = Guest(vmm, console)
            await guest.run("stty -echo")
            yield guest


async def test_console_talks_and_balloon_gives_memory_back(
    place: Path, linux: Kernel, archive: Path
) -> None:
    async with booted(
        place,
        linux,
        archive,
        console={"mode": "Pty"},
        memory={"size": RAM, "prefault": True},
        balloon={"size": BALLOON, "free_page_reporting": True},
    ) as guest:
        tree = (await guest.vmm.info())["device_tree"]
        assert tree["_virtio-pci-__console"]["pci_bdf"] == "0000:00:01.0"
        await check_console(guest)
        await check_balloon(guest)


async def check_console(guest: Guest) -> None:
    """A shell answers on it, and the guest hears of the terminal's size."""
    path = (await guest.vmm.info())["config"]["console"]["file"]
    # As a getty sets a terminal up, but for the echo.
    await guest.run("stty -F /dev/hvc0 -echo")
    await guest.run("(setsid sh </dev/hvc0 >/dev/hvc0 2>&1 &)")
    with opened(path) as terminal:
        os.write(terminal, b"echo $((6 * 7)) on $(tty)\n")
        assert b"42 on /dev/hvc0\r\n" in await read_until(terminal, b"hvc0\r\n")
        # A guest writes in pieces of a few bytes and waits for each: they come whole and in order.
        os.write(terminal, b"seq 1 200\n")
        printed = await read_until(terminal, b"\n200\r\n")
        assert printed.split()[-200:] == [b"%d" % number for number in range(1, 201)]
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("<HHHH", 50, 132, 0, 0))

        async def is_resized() -> bool:
            return await guest.run("stty -F /dev/hvc0 size") == "50 132\n"

        await wait_until(is_resized)


async def check_balloon(guest: Guest) -> None:
    """The guest's memory shrinks by the balloon, and this process's by as much."""

    async def is_inflated() -> bool:
        return bool((await guest.vmm.info())["memory_actual_size"] == RAM - BALLOON)

    await wait_until(is_inflated)
    total = int((await guest.run("grep MemTotal /proc/meminfo")).split()[1]) << 10
    assert total < RAM - BALLOON
    # All of the RAM was touched at first, and the program itself takes some beside it.
    assert await resident_bytes(guest.vmm) < RAM - BALLOON + 100 * MIB
    # What the guest uses and frees comes back as well: it reports free pages.
    await guest.run("mount -t tmpfs none /mnt && dd if=/dev/zero of=/mnt/file bs=1M count=100")
    used = await resident_bytes(guest.vmm)
    await guest.run("rm /mnt/file")

    async def is_reported() -> bool:
        return await resident_bytes(guest.vmm) < used - 60 * MIB

    await wait_until(is_reported)


async def check_deflation(guest: Guest) -> None:
    """A guest that runs out of memory takes pages back from the balloon, and lives."""

    async def is_inflated() -> bool:
        return bool((await guest.vmm.info())["memory_actual_size"] == RAM - LARGE_BALLOON)

    await wait_until(is_inflated)
    free = int((await guest.run("grep MemAvailable /proc/meminfo")).split()[1]) >> 10
    wanted = free + 64
    # A tmpfs is never written back: only the balloon can give what is missing.
    await guest.run(f"mount -t tmpfs -o size={wanted}m none /mnt")
    await guest.run(f"dd if=/dev/zero of=/mnt/file bs=1M count={wanted} 2>&1", PATIENCE_S)
    actual = (await guest.vmm.info())["memory_actual_size"]
    assert RAM - LARGE_BALLOON + 32 * MIB < actual < RAM
    await guest.run("umount /mnt")


async def wait_until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so; nothing of this can be waited on. Raises: trio.TooSlowError."""
    with trio.fail_after(PATIENCE_S):
        while not await is_so():  # noqa: ASYNC110
            await trio.sleep(0.2)


async def resident_bytes(vmm: VmmProcess) -> int:
    """How much memory the VMM has, by its own process id: it may have been forked for it."""
    pid = (await vmm.api("GET", "vmm.ping")).json["pid"]
    status = await trio.Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) << 10


async def test_balloon_gives_way_to_a_guest_in_need_and_its_panic_is_an_event(
    place: Path, linux: Kernel, archive: Path
) -> None:
    async with booted(
        place,
        linux,
        archive,
        memory={"size": RAM},
        balloon={"size": LARGE_BALLOON, "deflate_on_oom": True},
        pvpanic=True,
        watchdog=True,
        rtc={"pci_device_id": 9},
    ) as guest:
        tree = (await guest.vmm.info())["device_tree"]
        assert {"__pvpanic", "__watchdog", "__rtc", "__rng"} <= set(tree)
        assert tree["_virtio-pci-__rtc"]["pci_bdf"] == "0000:00:09.0"
        functions = (
            "cd /sys/bus/pci/devices && for d in *; do cat $d/vendor $d/device; done | xargs"
        )
        ids = (await guest.run(functions)).split()
        found = set(zip(ids[::2], ids[1::2], strict=True))
        assert {("0x1b36", "0x0011"), ("0x1af4", "0x1063"), ("0x1af4", "0x1051")} <= found
        await check_deflation(guest)
        ready = len(guest.console.text)

        await guest.console.type("echo c > /proc/sysrq-trigger\n")
        await guest.console.wait_for("GUEST-READY", BOOT_S, after=ready)

        events = guest.vmm.events()
        assert events.index("guest:panic") < events.index("vm:rebooted")
