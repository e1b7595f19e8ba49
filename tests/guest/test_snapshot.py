"""A stock guest that goes on in another VMM: its memory, clock, disks and networks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, Guest, machine, words
from tests.guest.test_cpu_hotplug import bring_up, has
from tests.guest.test_hotplug import appears, disappears
from tests.guest.test_resize import total_mib, wait_for_ram
from tools.images.kernels import Kernel
from vmm.testing.console import GuestConsole
from vmm.testing.process import VmmProcess

pytestmark = pytest.mark.guest

MIB = 1 << 20
HOST, GUEST = "192.168.77.1", "192.168.77.2"
HOST_MAC = "2e:77:00:00:00:01"
"""The other VMM makes the tap anew, and the guest still knows its address."""
CLOCK_S = 2.5
"""How far the guest's clock may have gone wrong, less than the time between the two VMMs."""


@asynccontextmanager
async def served(place: Path, name: str) -> AsyncIterator[VmmProcess]:
    """A VMM without a VM."""
    directory = place / name
    directory.mkdir()
    async with VmmProcess.start(directory, api=True) as vmm:
        await vmm.wait_until_served(BOOT_S)
        yield vmm


@asynccontextmanager
async def shell(vmm: VmmProcess, serial: Path, *, is_booting: bool) -> AsyncIterator[Guest]:
    """The guest's shell."""
    async with GuestConsole.connect(serial) as console:
        guest = Guest(vmm, console)
        if is_booting:
            await console.wait_for("GUEST-READY", BOOT_S)
            await guest.run("stty -echo")
        yield guest


async def lag(guest: Guest) -> float:
    """How far the guest's clock is behind the host's, in seconds."""
    return time.time() - float((await guest.run("date +%s")).strip())


async def save(vmm: VmmProcess, folder: Path) -> None:
    """Pause the VM, write it, and end its VMM."""
    await trio.Path(folder).mkdir()
    await vmm.put("vm.pause")
    await vmm.put("vm.snapshot", {"destination_url": f"file://{folder}"})
    assert (await vmm.info())["state"] == "Paused"
    await vmm.put("vmm.shutdown")
    assert await vmm.wait(60) == 0


@pytest.mark.parametrize("mode", ["Copy", "OnDemand"])
async def test_guest_goes_on_in_another_vmm_with_all_its_devices(
    mode: str, place: Path, linux: Kernel, with_virtio: Path
) -> None:
    serial, image, pmem = place / "serial.sock", place / "disk.raw", place / "pmem"
    for path in (image, pmem):
        path.write_bytes(bytes(8 * MIB))
    config = machine(
        linux,
        with_virtio,
        words(then="shell"),
        serial={"mode": "Socket", "socket": str(serial)},
        cpus={"boot_vcpus": 2, "max_vcpus": 2},
        disks=[{"path": str(image), "image_type": "Raw", "num_queues": 2}],
        net=[{"tap": "snap0", "ip": HOST, "mask": "255.255.255.0", "host_mac": HOST_MAC}],
        pmem=[{"file": str(pmem)}],
        vsock={"cid": 3, "socket": str(place / "vsock")},
        balloon={"size": 16 * MIB},
        watchdog=True,
    )
    async with served(place, "a") as vmm:
        await vmm.put("vm.create", config)
        await vmm.put("vm.boot")
        async with shell(vmm, serial, is_booting=True) as guest:
            await guest.run(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
            assert "3 packets received" in await guest.run(f"ping -c 3 -i 0.2 {HOST}")
            await guest.run("echo before | dd of=/dev/vda bs=512 conv=sync,fsync")
            await guest.run(
                "head -c 4194304 /dev/urandom > /run/noise; md5sum /run/noise > /run/sum"
            )
            behind = await lag(guest)
            boot_id = await guest.run("cat /proc/sys/kernel/random/boot_id")
            tree = (await vmm.info())["device_tree"]
            await save(vmm, place / "snapshot")
    # As long as a clock that was not set by the host's would lag behind.
    await trio.sleep(2 * CLOCK_S)

    async with served(place, "b") as vmm:
        request = {"source_url": f"file://{place}/snapshot", "memory_restore_mode": mode}
        await vmm.put("vm.restore", request)
        info = await vmm.info()
        assert info["state"] == "Paused"
        assert info["device_tree"] == tree
        async with shell(vmm, serial, is_booting=False) as guest:
            await vmm.put("vm.resume")
            assert await guest.run("cat /proc/sys/kernel/random/boot_id") == boot_id
            assert "OK" in await guest.run("md5sum -c /run/sum")
            assert abs(await lag(guest) - behind) <= CLOCK_S
            assert (await guest.run("head -n 1 /dev/vda")).startswith("before")
            await guest.run("echo after | dd of=/dev/vda bs=512 conv=sync,fsync")
            assert image.read_bytes().startswith(b"after")
            assert "3 packets received" in await guest.run(f"ping -c 3 -i 0.2 {HOST}")
            assert (await guest.run("head -c 65536 /dev/hwrng | wc -c")).strip() == "65536"
            assert (
                await guest.run(
                    "for i in 0 1; do taskset -c $i true || taskset $((i+1)) true; done; echo ran"
                )
            ).strip() == "ran"
            await vmm.put("vm.power-button")
            await guest.console.wait_for("GUEST-POWEROFF", 60)


async def test_guest_keeps_what_was_plugged_in_and_gives_it_back_later(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    serial, image = place / "serial.sock", place / "late.raw"
    image.write_bytes(bytes(8 * MIB))
    config = machine(
        linux,
        with_virtio,
        words(then="shell"),
        serial={"mode": "Socket", "socket": str(serial)},
        cpus={"boot_vcpus": 1, "max_vcpus": 3},
        memory={"size": 384 * MIB, "hotplug_size": 512 * MIB},
    )
    disk = {"path": str(image), "image_type": "Raw", "id": "late", "pci_device_id": 9}
    async with served(place, "a") as vmm:
        await vmm.put("vm.create", config)
        await vmm.put("vm.boot")
        async with shell(vmm, serial, is_booting=True) as guest:
            assert (await vmm.api("PUT", "vm.add-disk", disk)).status == 200
            await appears(guest, "/sys/block/vda")
            await guest.run("echo before | dd of=/dev/vda bs=512 conv=sync,fsync")
            await vmm.put("vm.resize", {"desired_vcpus": 2, "desired_ram": 640 * MIB})
            await has(guest, "0-1")
            await bring_up(guest, 1)
            await wait_for_ram(guest, 560)
            ram = await total_mib(guest)
            tree = (await vmm.info())["device_tree"]
            await save(vmm, place / "snapshot")

    async with served(place, "b") as vmm:
        await vmm.put("vm.restore", {"source_url": f"file://{place}/snapshot"})
        assert (await vmm.info())["device_tree"] == tree
        async with shell(vmm, serial, is_booting=False) as guest:
            await vmm.put("vm.resume")
            assert await total_mib(guest) == ram
            assert (await guest.run("cat /sys/devices/system/cpu/online")).strip() == "0-1"
            assert (await guest.run("head -n 1 /dev/vda")).startswith("before")
            await vmm.put("vm.remove-device", {"id": "late"})
            await vmm.wait_for_event("vm:device-removed", 60)
            await disappears(guest, "/sys/block/vda")
            await vmm.put("vm.resize", {"desired_vcpus": 1})
            await has(guest, "0")
            await vmm.put("vm.resize", {"desired_vcpus": 3, "desired_ram": 768 * MIB})
            await has(guest, "0-2")
            await bring_up(guest, 1, 2)
            await wait_for_ram(guest, ram + 120)
