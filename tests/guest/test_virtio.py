"""Virtio devices in a stock guest: found, used, taken away, moved, on any segment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.conftest import Guest, booted
from tools.images.kernels import Kernel
from vmm.virtio.pci_transport import BAR_SIZE

pytestmark = pytest.mark.guest

DEVICES = "/sys/bus/pci/devices"
DRIVER = "/sys/bus/virtio/drivers/virtio_rng"
DRAW = "dd if=/dev/hwrng bs=4096 count=16 2>/dev/null | wc -c"


async def draws(guest: Guest) -> bool:
    """Whether the guest gets entropy, and two draws differ."""
    count = (await guest.run(DRAW)).strip()
    draw = "dd if=/dev/hwrng bs=16 count=1 2>/dev/null | xxd -p"
    first, second = await guest.run(draw), await guest.run(draw)
    return count == "65536" and first != second


async def test_entropy_device_feeds_the_guest_and_is_in_the_device_tree(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    async with booted(place, linux, with_virtio) as guest:
        assert await draws(guest)
        function = f"{DEVICES}/0000:00:01.0"
        identity = await guest.run(f"cd {function}; cat vendor device class revision; cd /")
        bar = (await guest.run(f"head -1 {function}/resource")).split()
        interrupts = await guest.run("grep virtio0 /proc/interrupts")
        tree = (await guest.vmm.info())["device_tree"]

        assert identity.split() == ["0x1af4", "0x1044", "0xffff00", "0x01"]
        assert "virtio0-config" in interrupts
        assert "PCI-MSIX-0000:00:01.0" in interrupts or "PCI-MSI" in interrupts
        assert tree["__rng"]["parent"] == "_virtio-pci-__rng"
        transport = tree["_virtio-pci-__rng"]
        assert transport["pci_bdf"] == "0000:00:01.0"
        assert transport["children"] == ["__rng"]
        assert transport["resources"] == [
            {
                "PciBar": {
                    "index": 0,
                    "base": int(bar[0], 16),
                    "size": BAR_SIZE,
                    "type_": "Mmio64",
                    "prefetchable": False,
                }
            }
        ]
        assert guest.vmm.events().count("virtio-device:activated") == 1


async def test_entropy_device_comes_back_after_unbind_and_after_removal(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    async with booted(place, linux, with_virtio, "--cpus", "boot=2") as guest:
        for _ in range(3):
            await guest.run(f"echo virtio0 > {DRIVER}/unbind")
            await guest.run(f"echo virtio0 > {DRIVER}/bind")
        assert await draws(guest)

        await guest.run(f"echo 1 > {DEVICES}/0000:00:01.0/remove")
        assert (await guest.run(f"ls {DEVICES}")).split() == ["0000:00:00.0"]
        await guest.run("echo 1 > /sys/bus/pci/rescan")
        assert await draws(guest)

        events = guest.vmm.events()
        assert events.count("virtio-device:activated") == 5
        assert events.count("virtio-device:reset") == 4


async def test_entropy_device_takes_a_chosen_slot_of_another_segment(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    rng = "src=/dev/urandom,pci_segment=1,pci_device_id=5"
    weights = "pci_segment=1,mmio32_aperture_weight=2,mmio64_aperture_weight=2"
    options = ("--platform", "num_pci_segments=3", "--pci-segment", weights, "--rng", rng)
    async with booted(place, linux, with_virtio, *options) as guest:
        listed = (await guest.run(f"ls {DEVICES}")).split()
        assert listed == ["0000:00:00.0", "0001:00:05.0"]
        assert await draws(guest)
        tree = (await guest.vmm.info())["device_tree"]
        assert tree["_virtio-pci-__rng"]["pci_bdf"] == "0001:00:05.0"
        windows = await guest.run("dmesg | grep 'pci_bus 0001:00: root bus resource'")
        assert "[bus 00]" in windows
        roots = (await guest.run("ls -d /sys/devices/pci*")).split()
        assert [root[-7:] for root in roots] == ["0000:00", "0001:00", "0002:00"]


async def test_entropy_source_that_ends_breaks_its_device_and_not_the_guest(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    async with booted(place, linux, with_virtio, "--rng", "src=/dev/null") as guest:
        assert (await guest.run("echo alive")) == "alive\n"
        assert "virtio-device:needs-reset" in guest.vmm.events()
        assert (
            await guest.run("cat /sys/bus/virtio/devices/virtio0/status")
        ).strip() == "0x0000004f"
