"""Devices that come and go in a stock guest: found, used, given back, in the same slot again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.guest.conftest import BOOT_S, Guest, booted
from tools.images.kernels import Kernel
from vmm.client import AsyncClient
from vmm.config.net import NetConfig
from vmm.net.interface import Interface, address_of
from vmm.net.tap import open_tap

pytestmark = pytest.mark.guest

MIB = 1 << 20
HOST, GUEST = "192.168.77.1", "192.168.77.2"
NOTICED_S = 30
"""How long the guest may take to notice; even a nested host needs a tenth of it."""


async def appears(guest: Guest, path: str) -> None:
    """Wait until the guest has a file."""
    await guest.run(f"until [ -e {path} ]; do sleep 0.1; done", NOTICED_S)


async def disappears(guest: Guest, path: str) -> None:
    """Wait until the guest has a file no more."""
    await guest.run(f"while [ -e {path} ]; do sleep 0.1; done", NOTICED_S)


async def reboot(guest: Guest) -> None:
    """Have the guest reboot, and wait for its shell."""
    ready = len(guest.console.text)
    await guest.console.type("reboot -f\n")
    await guest.console.wait_for("GUEST-READY", BOOT_S, after=ready)
    await guest.run("stty -echo")


async def add(guest: Guest, what: str, **entry: object) -> dict[str, str]:
    """Add a device to the running VM; its id and place."""
    reply = await guest.vmm.api("PUT", f"vm.add-{what}", entry)
    assert reply.status == 200, reply.body
    place: dict[str, str] = reply.json
    return place


async def remove(guest: Guest, id: str) -> None:
    """Ask for a device, and wait until the guest has given it back."""
    before = guest.vmm.events().count("vm:device-removed")
    await guest.vmm.put("vm.remove-device", {"id": id})
    await guest.vmm.wait_for_event("vm:device-removed", NOTICED_S, after=before)


@pytest.mark.parametrize("segment", [0, 1])
async def test_added_disk_is_used_removed_put_in_the_same_slot_and_kept_over_a_reboot(
    segment: int, place: Path, linux: Kernel, with_virtio: Path
) -> None:
    image = place / "disk.raw"
    image.write_bytes(bytes(8 * MIB))
    entry = {"path": str(image), "image_type": "Raw", "pci_segment": segment, "pci_device_id": 9}
    options = ("--platform", "num_pci_segments=2")
    async with booted(place, linux, with_virtio, *options) as guest:
        bdf = f"000{segment}:00:09.0"
        assert await add(guest, "disk", **entry) == {"id": "_disk0", "bdf": bdf}
        await appears(guest, "/sys/block/vda")
        assert bdf in await guest.run("readlink -f /sys/block/vda")
        await guest.run("echo written | dd of=/dev/vda bs=512 conv=sync,fsync")
        assert image.read_bytes().startswith(b"written")
        taken = await guest.vmm.api("PUT", "vm.add-disk", {**entry, "path": str(place / "other")})
        assert taken.status in (409, 500), taken.body

        await remove(guest, "_disk0")
        await disappears(guest, "/sys/block/vda")
        info = await guest.vmm.info()
        assert "_disk0" not in info["device_tree"]
        assert "disks" not in info["config"]

        assert (await add(guest, "disk", **entry, id="again"))["bdf"] == bdf
        await appears(guest, "/sys/block/vda")
        assert (await guest.run("head -n 1 /dev/vda")).startswith("written")

        await reboot(guest)
        await appears(guest, "/sys/block/vda")
        assert bdf in await guest.run("readlink -f /sys/block/vda")
        assert (await guest.vmm.info())["config"]["disks"][0]["id"] == "again"
        await remove(guest, "again")
        await disappears(guest, "/sys/block/vda")


async def test_added_network_on_descriptors_of_a_tap_carries_packets_and_lets_go_of_it(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    async with booted(place, linux, with_virtio, "--cpus", "boot=2") as guest:
        vm = AsyncClient(str(place / "api.sock"))
        with open_tap("lan0", 2) as tap:
            tap.interface.set_address(address_of(HOST, "255.255.255.0"))
            tap.interface.bring_up()
            mac = "02:77:00:00:00:02"
            lan = NetConfig(fds=tap.fds, num_queues=4, mac=mac, id="lan", pci_device_id=6)
            added = await vm.add_net(lan)
        assert added is not None
        assert (added.id, added.bdf) == ("lan", "0000:00:06.0")
        await appears(guest, "/sys/class/net/eth0")
        assert (await guest.run("cat /sys/class/net/eth0/address")).strip() == lan.mac
        await guest.run(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
        assert "3 packets received" in await guest.run(f"ping -c 3 -i 0.2 {HOST}")

        await reboot(guest)
        await guest.run(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
        assert "3 packets received" in await guest.run(f"ping -c 3 -i 0.2 {HOST}")

        await remove(guest, "lan")
        await disappears(guest, "/sys/class/net/eth0")
        # Nobody has the tap open any more.
        assert not Interface("lan0").exists()

        # The slot is free at once, for anything: a network with a tap of its own.
        again = await add(guest, "net", tap="lan0", ip=HOST, mask="255.255.255.0", pci_device_id=6)
        assert again == {"id": "_net0", "bdf": "0000:00:06.0"}
        await appears(guest, "/sys/class/net/eth0")
        await guest.run(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
        assert "3 packets received" in await guest.run(f"ping -c 3 -i 0.2 {HOST}")


async def test_network_comes_to_another_segment_and_goes_while_packets_flow_on_the_first(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    options = ["--cpus", "boot=2", "--platform", "num_pci_segments=3"]
    options += ["--net", "tap=first0,ip=192.168.76.1,mask=255.255.255.0"]
    async with booted(place, linux, with_virtio, *options) as guest:
        await guest.run("ip addr add 192.168.76.2/24 dev eth0; ip link set eth0 up")
        await guest.run("(ping -i 0.1 192.168.76.1 > /tmp/flow 2>&1 &)")
        lan = {"tap": "lan0", "ip": HOST, "mask": "255.255.255.0", "id": "lan"}
        for segment in (1, 2, 1, 2):
            added = await add(guest, "net", **lan, pci_segment=segment, pci_device_id=0)
            assert added["bdf"] == f"000{segment}:00:00.0"
            await appears(guest, "/sys/class/net/eth1")
            assert added["bdf"] in await guest.run("readlink -f /sys/class/net/eth1/device")
            await guest.run(f"ip addr add {GUEST}/24 dev eth1; ip link set eth1 up")
            assert "3 packets received" in await guest.run(f"ping -c 3 -i 0.2 {HOST}")
            await remove(guest, "lan")
            await disappears(guest, "/sys/class/net/eth1")
        await guest.run("killall -INT ping; while killall -q -0 ping; do sleep 0.1; done")
        flow = await guest.run("cat /tmp/flow")
        came = [int(number) for number in re.findall(r" seq=(\d+) ", flow)]
        (sent,) = re.findall(r"(\d+) packets transmitted", flow)
        # The last may have been on its way when ping was ended.
        assert came in (list(range(int(sent))), list(range(int(sent) - 1))), flow
        assert len(came) > 20


async def test_guest_that_never_ejects_keeps_its_device_until_it_is_rebooted(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    image = place / "disk.raw"
    image.write_bytes(b"kept".ljust(MIB, b"\0"))
    disk = f"path={image},image_type=raw,id=kept"
    deaf = "acpiphp.disable=1"
    async with booted(place, linux, with_virtio, "--disk", disk, extra=deaf) as guest:
        await appears(guest, "/sys/block/vda")
        for _ in range(3):
            await guest.vmm.put("vm.remove-device", {"id": "kept"})
        info = await guest.vmm.info()
        assert "disks" not in info["config"]
        assert "kept" in info["device_tree"]
        await guest.run("echo 3 > /proc/sys/vm/drop_caches")
        assert (await guest.run("head -c 4 /dev/vda")).strip() == "kept"
        again = {"path": str(image), "image_type": "Raw", "id": "kept"}
        reply = await guest.vmm.api("PUT", "vm.add-disk", again)
        assert reply.status == 409, reply.body

        await reboot(guest)
        assert "kept" not in (await guest.vmm.info())["device_tree"]
        assert "vm:device-removed" not in guest.vmm.events()
        assert (await add(guest, "disk", **again))["id"] == "kept"
