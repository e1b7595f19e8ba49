"""The IOMMU of real machines: a tiny guest maps memory for a device; the tables name both."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.machines import configure, running
from tests.kvm.guests.meddling import free_port
from tests.kvm.guests.moving import two_hosts
from tests.kvm.guests.processes import SECONDS, short_folder
from tests.kvm.guests.programs import HALT, say
from tests.kvm.guests.virtio import (
    AVAIL,
    BAR,
    BUFFER,
    DESC,
    USED,
    configure_space,
    descriptor,
    move_bar,
    set_up,
    submit_and_poll,
)
from tests.kvm.test_snapshot import restored, save
from vmm.acpi.tables import LIMIT_ADDRESS, RSDP_ADDRESS
from vmm.config.disk import DiskConfig
from vmm.errors import ConfigError
from vmm.virtio.pci_transport import NOTIFY
from vmm.virtio.spec import Feature

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

NEXT, WRITE = 1, 2
READ_WRITE = 3
ATTACH, MAP, TAILS = 0x22_0000, 0x22_0100, 0x22_0200
AWAY = 0x10_0000
"""How far from its own addresses the device's memory really is."""
DOMAIN, RNG_SLOT, IOMMU_SLOT = 5, 1, 2
RANDOM = {"src": "/dev/urandom", "iommu": True}

place = short_folder


def words(at: int, *values: int) -> str:
    """Write 32-bit words to memory."""
    return "\n".join(f"movl ${each:#x}, {at + 4 * n:#x}" for n, each in enumerate(values))


# The ring of both devices is at DESC: that of the IOMMU in RAM, that of the other for the device.
MAPS = f"""
    {move_bar(IOMMU_SLOT)}
    {set_up()}
    {words(ATTACH, 1, DOMAIN, RNG_SLOT << 3)}
    {words(MAP, 3, DOMAIN, DESC, 0, BUFFER + 0xFFF, 0, DESC + AWAY, 0, READ_WRITE)}
    {words(TAILS, 0xFFFF_FFFF, 0xFFFF_FFFF)}
    {descriptor(0, ATTACH, 20, NEXT, 1)}
    {descriptor(1, TAILS, 4, WRITE)}
    {submit_and_poll()}
    {descriptor(2, MAP, 36, NEXT, 3)}
    {descriptor(3, TAILS + 4, 4, WRITE)}
    movw $2, {AVAIL + 6:#x}
    movw $2, {AVAIL + 2:#x}
    movw $0, {BAR + NOTIFY:#x}
2:  cmpw $2, {USED + 2:#x}
    jne 2b
    {configure_space(IOMMU_SLOT, 0x10, BAR + (16 << 20))}
    {move_bar(RNG_SLOT)}
    {set_up(features=Feature.VERSION_1 | Feature.ACCESS_PLATFORM)}
    {words(DESC + AWAY, BUFFER, 0, 16, WRITE)}
"""
PROGRAM = f"""
    {MAPS}
    movw $1, {AVAIL + AWAY + 2:#x}
    movw $0, {BAR + NOTIFY:#x}
3:  cmpw $1, {USED + AWAY + 2:#x}
    jne 3b
    {say("used")}
    hlt
"""
READS_FOR_EVER = f"""
    {MAPS}
3:  movl $0, {BUFFER + AWAY:#x}
    incw {AVAIL + AWAY + 2:#x}
    movw $0, {BAR + NOTIFY:#x}
    mov {AVAIL + AWAY + 2:#x}, %ax
4:  cmp %ax, {USED + AWAY + 2:#x}
    jne 4b
    cmpl $0, {BUFFER + AWAY:#x}
    je 8f
    cmpl $0, {BUFFER:#x}
    jne 8f
    {say(".")}
    jmp 3b
8:  {say("!")}
    jmp 8b
"""
"""Has entropy written where it mapped memory, again and again: "." when it came there, else "!"."""


async def test_device_reaches_ram_where_a_guest_has_mapped_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"sixteen of bytes")
    kernel = write_kernel(tmp_path, PROGRAM)
    config = configure(kernel, rng={"src": str(source), "iommu": True})
    async with running(config) as vm:
        await vm.debug.wait_for(b"used")

        read = vm.machine.memory.read
        assert read(TAILS, 8) == bytes(8)
        assert read(BUFFER + AWAY, 16) == b"sixteen of bytes"
        assert read(BUFFER, 16) == bytes(16)
        assert vm.machine.counters["__iommu"] == {"domains": 1, "mappings": 1, "faults": 0}


async def test_restored_device_reaches_ram_where_its_guest_had_mapped_it(tmp_path: Path) -> None:
    config = configure(write_kernel(tmp_path, READS_FOR_EVER), rng=RANDOM)
    async with running(config) as vm:
        await vm.debug.wait_for(b"...")
        await save(vm, config, tmp_path / "snapshot")

    async with restored(tmp_path / "snapshot") as vm:
        await vm.machine.resume()
        await vm.debug.wait_for(b"...")
        assert set(vm.debug.output) == {ord(".")}
        assert vm.machine.counters["__iommu"] == {"domains": 1, "mappings": 1, "faults": 0}


@pytest.mark.parametrize("mode", ["Precopy", "Postcopy"])
async def test_moved_device_reaches_ram_where_its_guest_had_mapped_it(
    place: Path, mode: str
) -> None:
    async with two_hosts(place) as (one, other):
        await one.boot(place, READS_FOR_EVER, rng=RANDOM)
        await one.rounds(3)

        url = f"tcp:127.0.0.1:{free_port()}"
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(other.receive, url, memory_mode=mode))
                await one.send(url, memory_mode=mode)

        await other.rounds(5)
        counted = (await other.client.counters())["__iommu"]
        assert counted == {"domains": 1, "mappings": 1, "faults": 0}


async def test_tables_tell_where_the_iommu_and_what_is_behind_it_are(tmp_path: Path) -> None:
    config = configure(
        write_kernel(tmp_path, HALT),
        platform={"num_pci_segments": 3, "iommu_segments": [2]},
        console={"mode": "Null", "iommu": True},
        rng={"src": "/dev/zero", "iommu": True, "pci_segment": 2},
        balloon={"size": 0, "iommu": True},
    )
    async with running(config) as vm:
        tree = vm.machine.device_tree
        tables = vm.machine.memory.read(RSDP_ADDRESS, LIMIT_ADDRESS - RSDP_ADDRESS)

    assert tree["_virtio-pci-__console"]["pci_bdf"] == "0000:00:01.0"
    assert tree["_virtio-pci-__iommu"]["pci_bdf"] == "0000:00:03.0"
    at = tables.index(b"VIOT")
    assert struct.unpack_from("<HH", tables, at + 36) == (3, 48)
    assert struct.unpack_from("<BxHHH", tables, at + 48) == (3, 16, 0, 3 << 3)
    ranges = [struct.unpack_from("<BxHIHHHHH", tables, at + 64 + 24 * n) for n in range(2)]
    assert ranges == [
        (1, 24, 0x2_0000, 2, 2, 0, 0xFF, 48),
        (1, 24, 0x08, 0, 0, 0x08, 0x08, 48),
    ]


async def test_devices_come_behind_the_iommu_on_its_segments_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    config = configure(
        write_kernel(tmp_path, HALT), platform={"num_pci_segments": 2, "iommu_segments": [1]}
    )
    disk = DiskConfig.model_validate({"path": str(path), "image_type": "Raw", "iommu": True})
    async with running(config) as vm:
        with pytest.raises(ConfigError, match=r"segment 0: .* alone \(1\)"):
            await vm.machine.add_device("disks", disk)
        added = await vm.machine.add_device("disks", disk.model_copy(update={"pci_segment": 1}))

        assert str(added.bdf) == "0001:00:00.0"
        assert vm.machine.remove_device(added.entry.id or "") == "_disk0"
