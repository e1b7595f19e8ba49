"""Memory that a stock guest shares with the host: on its bus, and mapped by its programs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.guest.conftest import Guest, booted
from tests.guest.test_hotplug import reboot
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel

pytestmark = pytest.mark.guest

MIB = 1 << 20
SIZE = 4 * MIB
LAST = SIZE - 64
"""In the last page; closer to its end busybox would map one more."""


def word(file: Path, at: int) -> int:
    """Four bytes of a file as a number."""
    with file.open("rb") as opened:
        opened.seek(at)
        return int.from_bytes(opened.read(4), "little")


def put(file: Path, at: int, value: int) -> None:
    """Write a number of four bytes to a file."""
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(value.to_bytes(4, "little"))


async def find(guest: Guest) -> str:
    """The function's directory in sysfs, and that it is what it should be."""
    [line] = [each for each in (await guest.run("lspci -n")).splitlines() if "1af4:1110" in each]
    slot = line.split()[0]
    assert "0500: 1af4:1110 (rev 01)" in line
    tree = (await guest.vmm.info())["device_tree"]["__ivshmem"]
    assert tree["pci_bdf"] == f"0000:{slot}"
    folder = f"/sys/bus/pci/devices/0000:{slot}"
    resources = [each.split() for each in (await guest.run(f"cat {folder}/resource")).splitlines()]
    spans = [(int(start, 16), int(end, 16) + 1 - int(start, 16)) for start, end, _ in resources]
    shown = {each["PciBar"]["index"]: each["PciBar"] for each in tree["resources"]}
    await guest.run(f"test -e {folder}/resource2_wc")
    for index, size in ((0, 256), (2, SIZE)):
        assert spans[index] == (shown[index]["base"], size)
    return folder


async def check_shared(guest: Guest, shared: Path, folder: str, value: int) -> None:
    """A program of the guest and the host each read what the other has written."""
    put(shared, LAST, value)
    # busybox maps /dev/mem and no other file: the device's memory is put in its place.
    await guest.run(f"mount --bind {folder}/resource2 /dev/mem")
    assert int(await guest.run(f"devmem {LAST:#x} 32"), 16) == value
    await guest.run(f"devmem 0x1000 32 {value + 1:#x}")
    assert word(shared, 0x1000) == value + 1


async def test_guest_maps_the_memory_that_it_shares_with_the_host_and_again_after_a_reboot(
    place: Path, linux: Kernel
) -> None:
    shared = place / "shared"
    shared.touch()
    os.truncate(shared, SIZE)
    options = ("--ivshmem", f"path={shared},size=4M")
    async with booted(place, linux, initramfs(linux, "demo"), *options) as guest:
        folder = await find(guest)
        await check_shared(guest, shared, folder, 0x1234_5678)

        await reboot(guest)

        assert await find(guest) == folder
        assert word(shared, 0x1000) == 0x1234_5679
        await check_shared(guest, shared, folder, 0x2345_6789)
