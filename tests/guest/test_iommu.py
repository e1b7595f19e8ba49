"""Devices behind the IOMMU in a stock guest: its driver maps every address they use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.conftest import Guest, booted, machine, words
from tests.guest.test_hotplug import add, appears, disappears, reboot, remove
from tests.guest.test_snapshot import save, served, shell
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel, kernel

pytestmark = pytest.mark.guest

MIB = 1 << 20
DATA_BYTES = 2 * MIB
"""In small pieces: Linux waits for a mapping a page, with its processor."""
HOST, GUEST = "192.168.78.1", "192.168.78.2"
# Without offloads Linux posts a buffer of one page a packet, not of seventeen that are mapped one
# by one: a nested host takes its time for each.
NET = f"tap=iommu0,ip={HOST},mask=255.255.255.0,offload_tso=off,offload_ufo=off"
IOMMU_KERNELS = ("6.12-cloud", "7-cloud")
"""Those of the stock kernels that have the driver."""


async def grouped(guest: Guest, expected: set[str]) -> None:
    """Wait until the guest has these PCI functions in IOMMU groups, and no others.

    Linux tries a device again when the IOMMU's driver is there.
    """
    for bdf in expected:
        await appears(guest, f"/sys/bus/pci/devices/{bdf}/iommu_group")
    found = await guest.run("ls -d /sys/kernel/iommu_groups/*/devices/*")
    assert {path.rpartition("/")[2] for path in found.split()} == expected


async def places(guest: Guest) -> dict[str, str]:
    """Where each virtio device is, by its name."""
    tree, prefix = (await guest.vmm.info())["device_tree"], "_virtio-pci-"
    return {
        name.removeprefix(prefix): node["pci_bdf"]
        for name, node in tree.items()
        if name.startswith(prefix)
    }


async def counters(guest: Guest) -> dict[str, int]:
    """What the IOMMU counts."""
    counted: dict[str, int] = (await guest.vmm.api("GET", "vm.counters")).json["__iommu"]
    return counted


async def check_disk(guest: Guest, name: str) -> None:
    """Write a disk directly, and read what was written."""
    await appears(guest, f"/sys/block/{name}")
    await guest.run(f"head -c {DATA_BYTES} /dev/urandom > /tmp/data")
    await guest.run(f"dd if=/tmp/data of=/dev/{name} bs=32k oflag=direct 2>/dev/null", 120)
    await guest.run("echo 3 > /proc/sys/vm/drop_caches")
    compared = await guest.run(f"head -c {DATA_BYTES} /dev/{name} | cmp - /tmp/data && echo same")
    assert compared == "same\n"


async def check_network(guest: Guest) -> None:
    """Carry packets both ways."""
    await appears(guest, "/sys/class/net/eth0")
    await guest.run(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
    assert "5 packets received" in await guest.run(f"ping -c 5 -i 0.2 -s 1400 {HOST}")


@pytest.mark.parametrize("release", IOMMU_KERNELS)
async def test_devices_behind_the_iommu_work_and_have_no_faults(place: Path, release: str) -> None:
    linux = kernel(release)
    image = place / "disk.raw"
    image.write_bytes(bytes(64 * MIB))
    (place / "pmem").write_bytes(bytes(16 * MIB))
    options = ["--disk", f"path={image},image_type=raw,iommu=on,queue_size=1024"]
    options += ["--net", f"{NET},iommu=on"]
    options += ["--rng", "src=/dev/urandom,iommu=on", "--vsock", f"cid=5,socket={place}/v,iommu=on"]
    options += ["--pmem", f"file={place}/pmem,size=16M,iommu=on"]
    options += ["--balloon", "size=0,iommu=on", "--cpus", "boot=2"]
    async with booted(
        place, linux, initramfs(linux, "virtio"), *options, virtio_console="null,iommu=on"
    ) as guest:
        where = await places(guest)
        behind = ("__console", "_disk0", "_net1", "__rng", "_pmem2", "_vsock3")
        await grouped(guest, {where[each] for each in behind})
        assert where["__iommu"].startswith("0000:00:")
        assert "Adding to iommu group" in await guest.run("dmesg | grep -i iommu")

        await check_disk(guest, "vda")
        await check_network(guest)
        assert (await guest.run("head -c 512 /dev/hwrng | wc -c")).strip() == "512"
        await guest.run("echo printed > /dev/hvc0")
        await guest.run("dd if=/tmp/data of=/dev/pmem0 bs=1M conv=fsync 2>/dev/null")
        assert (place / "pmem").read_bytes()[:DATA_BYTES] == image.read_bytes()[:DATA_BYTES]

        counted = await counters(guest)
        assert (counted["faults"], counted["domains"]) == (0, len(behind))
        assert counted["mappings"] > 100


async def test_devices_come_and_go_behind_the_iommu_on_its_segment_and_stay_over_a_reboot(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    image, other = place / "disk.raw", place / "other.raw"
    for path in (image, other):
        path.write_bytes(bytes(16 * MIB))
    options = ["--platform", "num_pci_segments=2,iommu_segments=[1],iommu_address_width=48"]
    options += ["--disk", f"path={image},image_type=raw,iommu=on,pci_segment=1"]
    options += ["--disk", f"path={other},image_type=raw,iommu=on", "--cpus", "boot=2"]
    async with booted(place, linux, with_virtio, *options) as guest:
        single = (await places(guest))["_disk1"]
        await grouped(guest, {"0001:00:00.0", single})
        await check_disk(guest, "vda")

        lan: dict[str, object] = {"tap": "iommu0", "ip": HOST, "mask": "255.255.255.0", "id": "lan"}
        lan |= {"offload_tso": False, "offload_ufo": False}
        for _ in range(2):
            behind = {**lan, "iommu": True, "pci_segment": 1, "pci_device_id": 5}
            assert (await add(guest, "net", **behind))["bdf"] == "0001:00:05.0"
            await check_network(guest)
            await grouped(guest, {"0001:00:00.0", "0001:00:05.0", single})
            await remove(guest, "lan")
            await disappears(guest, "/sys/class/net/eth0")
            await grouped(guest, {"0001:00:00.0", single})

        for refused in ({**lan, "iommu": True}, {**lan, "pci_segment": 1}):
            reply = await guest.vmm.api("PUT", "vm.add-net", refused)
            assert (reply.status, b"IOMMU" in reply.body) == (400, True), reply.body
        reply = await guest.vmm.api("PUT", "vm.remove-device", {"id": "_disk1"})
        assert (reply.status, b"cannot be removed" in reply.body) == (400, True), reply.body
        assert (await add(guest, "net", **behind))["id"] == "lan"
        await check_network(guest)

        await reboot(guest)
        await check_network(guest)
        await check_disk(guest, "vda")
        await grouped(guest, {"0001:00:00.0", "0001:00:05.0", (await places(guest))["_disk1"]})
        assert (await counters(guest))["faults"] == 0


async def test_restored_guest_goes_on_with_what_it_had_mapped(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    serial, image = place / "serial.sock", place / "disk.raw"
    image.write_bytes(bytes(16 * MIB))
    config = machine(
        linux,
        with_virtio,
        words(then="shell"),
        serial={"mode": "Socket", "socket": str(serial)},
        cpus={"boot_vcpus": 2, "max_vcpus": 2},
        disks=[{"path": str(image), "image_type": "Raw", "iommu": True}],
        rng={"src": "/dev/urandom", "iommu": True},
    )
    async with served(place, "a") as vmm:
        await vmm.put("vm.create", config)
        await vmm.put("vm.boot")
        async with shell(vmm, serial, is_booting=True) as guest:
            await check_disk(guest, "vda")
            assert (await counters(guest))["domains"] == 2
            await save(vmm, place / "snapshot")

    async with served(place, "b") as vmm:
        await vmm.put("vm.restore", {"source_url": f"file://{place}/snapshot"})
        async with shell(vmm, serial, is_booting=False) as guest:
            assert (await counters(guest))["domains"] == 2
            await vmm.put("vm.resume")
            await check_disk(guest, "vda")
            assert (await guest.run("head -c 512 /dev/hwrng | wc -c")).strip() == "512"
            assert (await counters(guest))["faults"] == 0


async def test_guest_that_passes_devices_through_maps_nothing(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    image = place / "disk.raw"
    image.write_bytes(bytes(16 * MIB))
    disk = ["--disk", f"path={image},image_type=raw,iommu=on"]
    async with booted(place, linux, with_virtio, *disk, extra="iommu=pt") as guest:
        await check_disk(guest, "vda")
        kind = await guest.run("cat /sys/kernel/iommu_groups/0/type")
        assert kind.strip() == "identity"
        assert await counters(guest) == {"domains": 1, "mappings": 0, "faults": 0}
