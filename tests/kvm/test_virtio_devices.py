"""Devices of a configuration on a real machine: their places, their faults, and one put to work.

The guest drives the entropy device by polling, from 32-bit code: it moves the BAR to where it can
reach it first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import check_nothing_left, holdings
from tests.kvm.guests.machines import SharedRam, configure, file_memory, running
from tests.kvm.guests.programs import HALT, say
from tests.kvm.guests.virtio import (
    AVAIL,
    BAR,
    BUFFER,
    DESC,
    USED,
    enable_queue,
    move_bar,
    reset_queue,
    set_up,
)
from vmm.errors import HostError
from vmm.machine.scope import sole_cause
from vmm.virtio.pci_transport import BAR_SIZE, ISR, MSIX_TABLE, NOTIFY, VirtioPci
from vmm.virtio.spec import Common, Feature, Status

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

BYTES = 64
WRITE, PACKED_AVAIL, PACKED_USED = 1 << 1, 1 << 7, 1 << 15

ASK_FOR_BYTES = f"""
    movl ${BUFFER:#x}, {DESC:#x}
    movl ${BYTES}, {DESC + 8:#x}
    movw $2, {DESC + 12:#x}
    movw $1, {AVAIL + 2:#x}
    movw $0, {BAR + NOTIFY:#x}
1:  cmpw $1, {USED + 2:#x}
    jne 1b
"""


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[SharedRam]:
    shared = SharedRam(tmp_path)
    yield shared
    shared.close()


async def test_guest_that_moves_the_bar_and_polls_gets_bytes_of_the_source(
    tmp_path: Path, ram: SharedRam
) -> None:
    source = tmp_path / "entropy"
    source.write_bytes(bytes(range(256)))
    program = f"{move_bar(1)}{set_up()}{ASK_FOR_BYTES}{say('.')}{HALT}"
    config = configure(
        write_kernel(tmp_path, program),
        memory=file_memory(ram.path),
        rng={"src": str(source)},
    )

    async with running(config) as vm:
        await vm.debug.wait_for(b".")
        node = vm.machine.device_tree["_virtio-pci-__rng"]

    bar = {"index": 0, "base": BAR, "size": BAR_SIZE, "type_": "Mmio64", "prefetchable": False}
    assert node["resources"] == [{"PciBar": bar}]
    assert ram.word(USED + 8) == BYTES
    drawn = b"".join(ram.word(BUFFER + at).to_bytes(4, "little") for at in range(0, BYTES, 4))
    assert drawn == bytes(range(BYTES))
    assert ram.word(BUFFER + BYTES) == 0


async def test_guest_that_breaks_its_ring_sees_needs_reset_and_gets_the_device_back(
    tmp_path: Path, ram: SharedRam
) -> None:
    wait_until_broken = f"2: testb ${Status.NEEDS_RESET:d}, {BAR + Common.DEVICE_STATUS:#x}; jz 2b"
    wait_until_reset = f"3: cmpb $0, {BAR + Common.DEVICE_STATUS:#x}; jne 3b"
    program = f"""
        {move_bar(1)}{set_up()}
        movw $100, {AVAIL + 2:#x}
        movw $0, {BAR + NOTIFY:#x}
        {wait_until_broken}
        {say("b")}
        movb $0, {BAR + Common.DEVICE_STATUS:#x}
        {wait_until_reset}
        movw $0, {AVAIL + 2:#x}
        {set_up()}{ASK_FOR_BYTES}{say(".")}{HALT}
    """
    config = configure(write_kernel(tmp_path, program), memory=file_memory(ram.path))

    async with running(config) as vm:
        await vm.debug.wait_for(b".")

    assert bytes(vm.debug.output) == b"b."
    assert ram.word(USED + 8) == BYTES


def ask_packed(slot: int, buffer: int) -> str:
    """Ask for bytes in a slot of a packed ring in its first lap, and wait until they are there."""
    at = DESC + 16 * slot
    return f"""
        movl ${buffer:#x}, {at:#x}
        movl ${BYTES}, {at + 8:#x}
        movl ${(PACKED_AVAIL | WRITE) << 16 | slot:#x}, {at + 12:#x}
        movw $0, {BAR + NOTIFY:#x}
    5:  mov {at + 14:#x}, %ax
        and ${PACKED_AVAIL | PACKED_USED:#x}, %ax
        cmp ${PACKED_AVAIL | PACKED_USED:#x}, %ax
        jne 5b
    """


async def test_guest_takes_a_packed_ring_back_and_gives_it_anew_in_another_size(
    tmp_path: Path, ram: SharedRam
) -> None:
    source = tmp_path / "entropy"
    source.write_bytes(bytes(range(256)))
    features = Feature.VERSION_1 | Feature.RING_PACKED | Feature.RING_RESET
    program = f"""
        {move_bar(1)}{set_up(6, features)}
        {ask_packed(0, BUFFER)}{ask_packed(1, BUFFER + BYTES)}
        {reset_queue()}
        mov {BAR + Common.QUEUE_ENABLE:#x}, %ax; mov %ax, {BUFFER + 0x800:#x}
        mov {BAR + Common.DEVICE_STATUS:#x}, %al; mov %al, {BUFFER + 0x804:#x}
        movl $0, {DESC + 12:#x}; movl $0, {DESC + 28:#x}
        {enable_queue(3)}
        {ask_packed(0, BUFFER + 2 * BYTES)}
        {say(".")}{HALT}
    """
    config = configure(
        write_kernel(tmp_path, program),
        memory=file_memory(ram.path),
        rng={"src": str(source)},
    )

    async with running(config) as vm:
        await vm.debug.wait_for(b".")

    drawn = [ram.word(BUFFER + at).to_bytes(4, "little") for at in range(0, 3 * BYTES, 4)]
    assert b"".join(drawn) == bytes(range(3 * BYTES))
    assert ram.word(BUFFER + 3 * BYTES) == 0
    assert ram.word(BUFFER + 0x800) == 0
    assert ram.word(BUFFER + 0x804) == 15
    assert ram.word(DESC + 8) == BYTES


async def test_common_configuration_and_vector_table_are_read_without_python(
    tmp_path: Path, ram: SharedRam, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = VirtioPci.read

    def noted(transport: VirtioPci, offset: int, size: int) -> int:
        asked.append(offset)
        return read(transport, offset, size)

    monkeypatch.setattr(VirtioPci, "read", noted)
    shown = {
        "b": (Common.DEVICE_STATUS, BUFFER),
        "w": (Common.QUEUE_SIZE, BUFFER + 4),
        "l": (Common.QUEUE_DESC, BUFFER + 8),
    }
    registers = {"b": "%al", "w": "%ax", "l": "%eax"}
    reads = "".join(
        f"mov {BAR + field:#x}, {registers[width]}; mov %eax, {to:#x};"
        for width, (field, to) in shown.items()
    )
    program = f"""
        {move_bar(1)}{set_up()}
        xor %eax, %eax
        {reads}
        movl $0, {BAR + MSIX_TABLE + 12:#x}
        mov {BAR + MSIX_TABLE + 12:#x}, %eax; mov %eax, {BUFFER + 12:#x}
        mov {BAR + MSIX_TABLE + 28:#x}, %eax; mov %eax, {BUFFER + 16:#x}
        mov {BAR + ISR:#x}, %al
        {say(".")}{HALT}
    """
    config = configure(write_kernel(tmp_path, program), memory=file_memory(ram.path))

    async with running(config) as vm:
        await vm.debug.wait_for(b".")

    assert asked == [ISR]
    assert [ram.word(BUFFER + at) for at in (0, 4, 8, 12, 16)] == [15, 8, DESC, 0, 1]


@pytest.mark.parametrize(
    ("rng", "platform", "bdf"),
    [
        ({}, {}, "0000:00:01.0"),
        ({"pci_device_id": 9}, {}, "0000:00:09.0"),
        ({"pci_segment": 1}, {"num_pci_segments": 2}, "0001:00:00.0"),
        ({"pci_segment": 2, "pci_device_id": 31}, {"num_pci_segments": 3}, "0002:00:1f.0"),
    ],
)
async def test_device_is_where_the_configuration_wants_it(
    tmp_path: Path, rng: dict[str, int], platform: dict[str, int], bdf: str
) -> None:
    config = configure(
        write_kernel(tmp_path, HALT), rng={"src": "/dev/urandom", **rng}, platform=platform
    )

    async with running(config) as vm:
        tree = vm.machine.device_tree

    assert tree["_virtio-pci-__rng"]["pci_bdf"] == bdf
    assert tree["__rng"] == {
        "id": "__rng",
        "resources": [],
        "parent": "_virtio-pci-__rng",
        "children": [],
    }


async def test_single_device_is_where_its_section_wants_it(tmp_path: Path) -> None:
    place = {"pci_segment": 1}
    config = configure(
        write_kernel(tmp_path, HALT),
        platform={"num_pci_segments": 2},
        rtc={**place, "pci_device_id": 7},
        balloon={**place, "pci_device_id": 9, "size": 0},
        console={**place, "pci_device_id": 11, "mode": "Null"},
    )

    async with running(config) as vm:
        tree = vm.machine.device_tree

    for name, slot in (("__rtc", 7), ("__balloon", 9), ("__console", 11)):
        assert tree[f"_virtio-pci-{name}"]["pci_bdf"] == f"0001:00:{slot:02x}.0"


@pytest.mark.parametrize(
    ("source", "reason"), [("/nowhere", "ENOENT"), ("/", "EISDIR"), ("", "ENOENT")]
)
async def test_source_that_cannot_be_read_refuses_the_boot_and_leaves_nothing(
    tmp_path: Path, source: str, reason: str
) -> None:
    config = configure(write_kernel(tmp_path, HALT), rng={"src": source})
    with pytest.raises(ExceptionGroup):
        async with running(config):
            pass
    before = holdings()

    with pytest.raises(ExceptionGroup) as caught:
        async with running(config):
            raise AssertionError("The machine runs")

    cause = sole_cause(caught.value)
    assert isinstance(cause, HostError)
    assert reason in str(cause)
    check_nothing_left(before)
