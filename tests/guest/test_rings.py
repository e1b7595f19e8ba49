"""Packed rings and the reset of single queues in a stock kernel, on two PCI segments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.conftest import Guest, booted
from tests.guest.debian import GATEWAY, NETWORK, disk, tool
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel
from tools.images.rootdisk import root_disk
from tools.images.sparse import copy_sparse
from vmm.virtio.spec import Feature

pytestmark = pytest.mark.guest

DEVICES = "/sys/bus/virtio/devices"
FLAWLESS = ", 0% packet loss"


async def accepted(guest: Guest) -> dict[str, int]:
    """The feature bits that each driver agreed on, by the device's PCI address."""
    shown = await guest.run(
        f"for d in {DEVICES}/*; do basename $(dirname $(readlink -f $d)); cat $d/features; done"
    )
    lines = shown.split()
    # The kernel shows bit 0 first.
    return {
        address: int(bits[::-1], 2) for address, bits in zip(lines[::2], lines[1::2], strict=True)
    }


async def test_linux_uses_packed_rings_on_every_device_and_resets_queues_of_a_network(
    place: Path, linux: Kernel
) -> None:
    root = copy_sparse(root_disk(), place / "root.raw")
    options = ["--cpus", "boot=2", "--platform", "num_pci_segments=2"]
    options += ["--disk", disk(root, pci_segment=1, pci_device_id=4, num_queues=2)]
    options += ["--net", f"ip={GATEWAY},mask=255.255.255.0,pci_segment=1,num_queues=4"]
    options += ["--balloon", "size=0,free_page_reporting=on"]
    async with booted(place, linux, initramfs(linux, "root"), *options, extra=NETWORK) as guest:
        tree = (await guest.vmm.info())["device_tree"]
        addresses = {
            name: tree[f"_virtio-pci-{name}"]["pci_bdf"]
            for name in ("_disk0", "_net1", "__rng", "__balloon")
        }
        assert addresses == {
            "_disk0": "0001:00:04.0",
            "_net1": "0001:00:00.0",
            "__rng": "0000:00:01.0",
            "__balloon": "0000:00:02.0",
        }
        agreed = await accepted(guest)
        assert set(agreed) == set(addresses.values())
        both = Feature.RING_PACKED | Feature.RING_RESET
        assert all(bits & both == both for bits in agreed.values())

        assert (await guest.run("findmnt -n -o SOURCE /")).strip() == "/dev/vda"
        assert (await guest.run("head -c 4096 /dev/hwrng | wc -c")).strip() == "4096"
        await check_resets(guest)


async def check_resets(guest: Guest) -> None:
    """Rings of another size are rings that were taken back and given anew; packets go on."""
    (name,) = (await guest.run("ls /sys/class/net | grep -v lo")).split()
    ping = f"ping -c 3 -i 0.2 {GATEWAY}"
    assert FLAWLESS in await guest.run(ping)
    for rx, tx in ((64, 128), (256, 32)):
        assert await guest.run(f"ethtool -G {name} rx {rx} tx {tx} 2>&1") == ""
        shown = (await guest.run(f"ethtool -g {name} | tail -n +7 | grep -E '^(RX|TX):'")).split()
        assert shown == ["RX:", str(rx), "TX:", str(tx)]
        assert FLAWLESS in await guest.run(ping)
        answers = await tool("ping", "-c", "3", "-i", "0.2", "192.0.2.2")
        assert FLAWLESS.encode() in answers
