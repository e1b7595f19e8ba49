"""RAM that real VMs are to have more or less of: what is stored, and what their guests reach."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import check_nothing_left, holdings
from tests.kvm.guests.machines import MIB, RAM_BYTES, Owned, configure, owned, running
from tests.kvm.guests.meddling import free_port
from tests.kvm.guests.moving import checks_memory, move, two_hosts
from tests.kvm.guests.processes import SECONDS, short_folder
from tests.kvm.guests.programs import HALT, WINDOW, map_window, say
from tests.kvm.guests.virtio import descriptor, move_bar, set_up, submit_and_poll
from tests.kvm.test_snapshot import restored, save
from vmm.config.requests import VmResize, VmResizeZone
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError, NotFoundError
from vmm.machine import memory as memory_module
from vmm.machine.commands import Boot, Create, Pause, Reboot, Resize, Resume
from vmm.machine.scope import sole_cause

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder
ROOM = 128 * MIB
REGION = 4 << 30
"""Where the first zone that grows has its region."""
MEM_SLOT = 2
ROOMY = {
    "size": RAM_BYTES,
    "shared": True,
    "hotplug_method": "VirtioMem",
    "hotplug_size": ROOM,
    "hotplugged_size": 2 * MIB,
}
"""RAM of one zone that grows, and is asked for a block from the boot on."""
NEXT, WRITE = 1, 2


def growing(folder: Path, source: str = HALT, **zone: object) -> VmConfig:
    """A VM with a zone that grows and one that does not."""
    zones = [
        {"id": "near", "size": RAM_BYTES, "hotplug_size": ROOM, **zone},
        {"id": "fixed", "size": 2 * MIB},
    ]
    memory = {"size": 0, "hotplug_method": "VirtioMem", "zones": zones}
    return configure(write_kernel(folder, source), memory=memory, balloon={"size": 0})


def zone(id: str, size: int) -> Resize:
    return Resize(VmResizeZone(id=id, desired_ram=size))


def asked_for(held: Owned) -> tuple[int | None, ...]:
    """What the zones are to have beyond the boot's RAM."""
    zones = held.owner.info().config.memory.zones or ()
    return tuple(zone.hotplugged_size for zone in zones)


async def test_less_ram_than_the_kernel_needs_is_refused_and_the_vm_reboots(
    tmp_path: Path,
) -> None:
    async with owned(configure(write_kernel(tmp_path, HALT))) as held:
        with pytest.raises(ConfigError, match="ends below what a kernel needs"):
            await held.do(Resize(VmResize(desired_ram=MIB)))
        await held.do(Reboot())
        assert held.owner.info().config.memory.size == RAM_BYTES

        await held.do(Resize(VmResize(desired_ram=RAM_BYTES // 2)), Reboot())
        assert held.owner.info().memory_actual_size == RAM_BYTES // 2


async def test_zone_is_asked_for_what_it_is_to_have_in_every_state(tmp_path: Path) -> None:
    async with owned() as held:
        await held.do(Create(growing(tmp_path)), zone("near", RAM_BYTES * 2), Boot())
        assert held.owner.info().memory_actual_size == RAM_BYTES * 2 + 2 * MIB

        await held.do(zone("near", RAM_BYTES * 2 + 4 * MIB))
        assert asked_for(held) == (4 * MIB, None)
        await held.do(Pause(), zone("near", RAM_BYTES * 2 + 6 * MIB), Resume())
        assert asked_for(held) == (6 * MIB, None)
        await held.do(Reboot())
        assert asked_for(held) == (6 * MIB, None)
        with pytest.raises(ConfigError, match=r"asked for 6291456 bytes .* already"):
            await held.do(zone("near", RAM_BYTES * 2 + 6 * MIB))
        with pytest.raises(ConfigError, match="Memory zone 'fixed' has no hotplug_size"):
            await held.do(zone("fixed", 4 * MIB))
        with pytest.raises(NotFoundError):
            await held.do(zone("__rng", 4 * MIB))
        tree: dict[str, Any] = dict(held.owner.info().device_tree or {})
        assert tree["near"].parent == "_virtio-pci-near"
        assert "fixed" not in tree
        # Behind the entropy device, and before a balloon.
        assert tree["_virtio-pci-near"].pci_bdf == "0000:00:02.0"
        assert tree["_virtio-pci-__balloon"].pci_bdf == "0000:00:03.0"
        # The guest has no driver.
        assert held.owner.info().memory_actual_size == RAM_BYTES * 2 + 2 * MIB


@pytest.mark.parametrize(
    "backing",
    [
        {},
        {"shared": True, "prefault": True},
        {"file": "."},
        {"file": ".", "shared": True},
        {"mergeable": True, "host_numa_node": 0},
    ],
    ids=["anonymous", "memfd", "file", "shared-file", "bound"],
)
async def test_guest_reaches_its_region_and_leaves_nothing(
    tmp_path: Path, backing: dict[str, object]
) -> None:
    if "file" in backing:
        backing = {**backing, "file": str(tmp_path)}
    at = REGION + ROOM - 2 * MIB
    source = f"""
        {map_window(at)}
        mov $0x12345678, %eax
        mov %eax, {WINDOW}
        {say("done")}
        {HALT}
    """
    before = holdings()

    async with running(growing(tmp_path, source, **backing)) as vm:
        await vm.debug.wait_for(b"done")
        assert vm.machine.memory.read(at, 4) == (0x12345678).to_bytes(4, "little")
        # What it took, it did not plug.
        assert vm.machine.memory_actual_size == RAM_BYTES + 2 * MIB

    check_nothing_left(before)


async def test_pages_that_change_are_those_of_plugged_blocks(tmp_path: Path) -> None:
    async with running(growing(tmp_path)) as vm:
        memory = vm.machine.memory
        _, blocks = memory.room_of("near")
        blocks.mark(REGION + 4 * MIB, 2, plugged=True)

        with vm.machine.watch_ram() as log:
            *_, first = log.collect()
            memory.write(REGION + 2 * MIB, b"not plugged")
            memory.write(REGION + 4 * MIB, b"plugged")
            memory.write(REGION + 8 * MIB - 1, b"one and the other")
            *_, second = log.collect()

    assert (first.gpa, len(first)) == (REGION, 4 * MIB // 4096)
    table, _ = second.ranges(0, 10, 10)
    assert list(struct.iter_unpack("<QQ", table.encode())) == [
        (REGION + 4 * MIB, 4096),
        (REGION + 8 * MIB - 4096, 4096),
    ]


@pytest.mark.parametrize("mode", ["Copy", "OnDemand"])
@pytest.mark.parametrize("shared", [False, True], ids=["anonymous", "memfd"])
async def test_restored_machine_has_the_blocks_that_were_plugged_and_what_is_in_them(
    tmp_path: Path, shared: bool, mode: str
) -> None:
    config = growing(tmp_path, shared=shared)
    folder = tmp_path / "snapshot"
    async with running(config) as vm:
        vm.machine.resize_zone("near", 8 * MIB)
        # As if the guest had a driver.
        vm.machine.memory.room_of("near")[1].mark(REGION + 4 * MIB, 2, plugged=True)
        vm.machine.memory.write(REGION + 8 * MIB - 7, b"its end, and what it has not plugged")
        saved = await save(vm, config, folder)

    async with restored(folder, memory_restore_mode=mode) as vm:
        await vm.machine.resume()
        memory = vm.machine.memory
        assert memory.room_of("near")[1].runs == [(2, 2)]
        assert memory.read(REGION + 8 * MIB - 7, 8) == b"its end\0"
        assert vm.machine.memory_actual_size == RAM_BYTES + 2 * MIB + 4 * MIB
        with pytest.raises(ConfigError, match="asked for 8388608 bytes"):
            vm.machine.resize_zone("near", 8 * MIB)
        # As if it gave some back, and got it again.
        memory.discard(REGION + 4 * MIB, 4 * MIB)
        memory.write(REGION + 4 * MIB, b"again")
        assert memory.read(REGION + 4 * MIB, 5) == b"again"

    assert saved.devices["near"].own.model_dump()["plugged"] == ((2, 2),)
    blocks = (folder / "memory-ranges").stat().st_blocks
    assert blocks * 512 < RAM_BYTES


ASK, TOLD = 0x22_0000, 0x22_0100
PLUGS = f"""
    {move_bar(MEM_SLOT)}
    {set_up()}
    movl $0, {ASK}
    movl $0, {ASK + 4}
    movl ${REGION & 0xFFFF_FFFF}, {ASK + 8}
    movl ${REGION >> 32}, {ASK + 12}
    movl $1, {ASK + 16}
    movl $0, {ASK + 20}
    movl $0xffffffff, {TOLD}
    {descriptor(0, ASK, 24, NEXT, 1)}
    {descriptor(1, TOLD, 10, WRITE)}
    {submit_and_poll()}
    cmpw $0, {TOLD}
    jne 8f
    {map_window(REGION)}
    {checks_memory(512, WINDOW)}
"""
"""Plugs a block, and checks the memory of that from then on."""


@pytest.mark.parametrize(
    ("mode", "is_local"), [("Precopy", False), ("Precopy", True), ("Postcopy", False)]
)
async def test_moved_guest_has_what_it_plugged(place: Path, mode: str, is_local: bool) -> None:
    url = f"unix:{place}/m" if is_local else f"tcp:127.0.0.1:{free_port()}"
    async with two_hosts(place) as (one, other):
        await one.boot(place, PLUGS, memory=ROOMY)
        await one.rounds(3)

        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(other.receive, url, memory_mode=mode))
                await one.send(url, memory_mode=mode, local=is_local)

        await other.rounds(5)
        assert (await other.client.info()).memory_actual_size == RAM_BYTES + 2 * MIB


@pytest.mark.parametrize("can_shrink", [True, False])
async def test_restored_machine_holds_nothing_that_was_not_plugged_where_the_host_can_do_that(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    can_shrink: bool,
) -> None:
    ram = tmp_path / "ram"
    ram.write_bytes(bytes(RAM_BYTES + ROOM))
    config = growing(tmp_path, file=str(ram), shared=True)
    folder = tmp_path / "snapshot"
    async with running(config) as vm:
        vm.machine.resize_zone("near", 8 * MIB)
        vm.machine.memory.room_of("near")[1].mark(REGION + 4 * MIB, 2, plugged=True)
        vm.machine.memory.write(REGION, b"x" * 10 * MIB)
        await save(vm, config, folder)

    if not can_shrink:
        # An advice that no kernel knows is refused as a file system refuses one that it cannot do.
        monkeypatch.setattr(memory_module, "MADV_REMOVE", 99)
    left = b"\0\0" if can_shrink else b"xx"
    async with restored(folder) as vm:
        assert vm.machine.memory.read(REGION + 4 * MIB - 2, 4) == left + b"xx"
        assert vm.machine.memory.read(REGION + 8 * MIB - 2, 4) == b"xx" + left
    assert ("keeps its memory" in caplog.text) is not can_shrink


@pytest.mark.parametrize("is_local", [False, True])
async def test_moved_machine_goes_on_with_its_room(place: Path, is_local: bool) -> None:
    async with two_hosts(place) as (one, other):
        await one.boot(place, memory=ROOMY)
        await one.rounds(2)

        await move(one, other, f"unix:{place}/m", local=is_local)

        await other.rounds(2)
        await other.client.resize(desired_ram=RAM_BYTES + 4 * MIB)
        info = await other.client.info()
        assert info.config.memory.hotplugged_size == 4 * MIB
        assert "mem0" in (info.device_tree or {})
        if not is_local:
            assert (await other.client.migration()).transferred_bytes <= RAM_BYTES


async def test_room_for_which_there_are_no_huge_pages_refuses_the_boot(tmp_path: Path) -> None:
    config = growing(tmp_path, hugepages=True, hugepage_size=2 * MIB, hotplug_size=1 << 40)
    before = holdings()

    with pytest.raises(Exception, match="hugepages") as caught:
        async with running(config):
            pass

    assert "memory zone 'near'" in str(sole_cause(caught.value))
    check_nothing_left(before)
