"""Shared memory on real machines: a guest and the host write and read, wherever its BAR is."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import check_nothing_left, holdings
from tests.kvm.guests.machines import (
    DEADLINE_S,
    Owned,
    SharedRam,
    configure,
    file_memory,
    owned,
    running,
)
from tests.kvm.guests.moving import move, two_hosts
from tests.kvm.guests.processes import short_folder
from tests.kvm.guests.programs import HALT, say
from tests.kvm.guests.virtio import BAR, BUFFER, configure_space
from vmm.config.requests import RestoreConfig
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError, HostError
from vmm.machine.commands import Delete, Pause, Reboot, Restore, Resume, Snapshot
from vmm.machine.scope import sole_cause

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

MIB = 1 << 20
SLOT = 2
"""The entropy device comes first."""
AWAY = BAR + 16 * MIB
QUESTION, ANSWER, GREETING, FAREWELL = 0, 8, 4096, MIB - 4


def move_memory(base: int) -> str:
    """Move the BAR of the memory to where 32-bit code reaches it."""
    return (
        configure_space(SLOT, 4, 0)
        + configure_space(SLOT, 0x18, base)
        + configure_space(SLOT, 0x1C, 0)
        + configure_space(SLOT, 4, 2)
    )


ECHO = f"""
    {move_memory(BAR)}
9:  mov {BAR + QUESTION:#x}, %eax
    inc %eax
    mov %eax, {BAR + ANSWER:#x}
    jmp 9b
"""
"""Answers every question with one more, for ever."""


class Shared:
    """A file that a guest shares, seen from the test."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "shared"
        self.path.touch()
        os.truncate(self.path, MIB)
        with self.path.open("r+b") as file:
            self._mapping = mmap.mmap(file.fileno(), 0)

    def word(self, at: int) -> int:
        """Read four bytes as a number."""
        return int.from_bytes(self._mapping[at : at + 4], "little")

    def put(self, at: int, value: int) -> None:
        """Write a number of four bytes."""
        self._mapping[at : at + 4] = value.to_bytes(4, "little")

    async def answers(self, question: int) -> None:
        """Ask the guest, and wait until it has answered."""
        self.put(QUESTION, question)
        with trio.fail_after(DEADLINE_S):
            while self.word(ANSWER) != question + 1:  # noqa: ASYNC110  memory tells nobody
                await trio.sleep(0.01)

    def close(self) -> None:
        """Unmap it."""
        self._mapping.close()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    file = Shared(tmp_path)
    yield file
    file.close()


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[SharedRam]:
    file = SharedRam(tmp_path)
    yield file
    file.close()


def echoing(folder: Path, shared: Shared) -> VmConfig:
    return configure(write_kernel(folder, ECHO), ivshmem={"path": str(shared.path), "size": MIB})


async def test_guest_and_host_share_the_memory_wherever_the_guest_moves_it(
    tmp_path: Path, shared: Shared, ram: SharedRam
) -> None:
    program = f"""
        {move_memory(BAR)}
        mov {BAR + FAREWELL:#x}, %eax; mov %eax, {BUFFER:#x}
        movl $0x11111111, {BAR + GREETING:#x}
        {say("1")}
    1:  cmpl $7, {BAR + QUESTION:#x}; jne 1b
        {move_memory(AWAY)}
        mov {AWAY + GREETING:#x}, %eax; mov %eax, {BUFFER + 4:#x}
        mov {BAR + GREETING:#x}, %eax; mov %eax, {BUFFER + 8:#x}
        movl $0x22222222, {AWAY + FAREWELL:#x}
        {say("2")}{HALT}
    """
    config = configure(
        write_kernel(tmp_path, program),
        memory=file_memory(ram.path),
        ivshmem={"path": str(shared.path), "size": MIB},
    )
    shared.put(FAREWELL, 0x3333_3333)
    before = holdings()

    async with running(config) as vm:
        await vm.debug.wait_for(b"1")
        assert ram.word(BUFFER) == 0x3333_3333
        assert shared.word(GREETING) == 0x1111_1111
        shared.put(GREETING, 0x4444_4444)
        shared.put(QUESTION, 7)
        await vm.debug.wait_for(b"2")
        node = vm.machine.device_tree["__ivshmem"]

    assert ram.word(BUFFER + 4) == 0x4444_4444
    assert ram.word(BUFFER + 8) == 0xFFFF_FFFF
    assert shared.word(FAREWELL) == 0x2222_2222
    assert node["pci_bdf"] == f"0000:00:{SLOT:02x}.0"
    registers, memory = bars(node)
    assert (registers["index"], registers["size"], registers["type_"]) == (0, 256, "Mmio32")
    assert memory == {
        "index": 2,
        "base": AWAY,
        "size": MIB,
        "type_": "Mmio64",
        "prefetchable": True,
    }
    check_nothing_left(before)


def bars(node: dict[str, object]) -> list[dict[str, object]]:
    """The BARs of a node of the device tree."""
    match node["resources"]:
        case list() as resources:
            return [resource["PciBar"] for resource in resources]
        case other:
            raise AssertionError(other)


TURNS = 1000


def takes_turns(remainder: int) -> str:
    """Counts up whenever the count is even (0) or odd (1), until there have been enough turns."""
    return f"""
        {move_memory(BAR)}
    1:  mov {BAR + QUESTION:#x}, %eax
        cmp ${TURNS}, %eax
        je 2f
        and $1, %eax
        cmp ${remainder}, %eax
        jne 1b
        incl {BAR + QUESTION:#x}
        jmp 1b
    2:  {say("!")}{HALT}
    """


async def test_two_guests_hear_of_each_other_by_the_memory(tmp_path: Path, shared: Shared) -> None:
    configs = []
    for remainder in (0, 1):
        (tmp_path / str(remainder)).mkdir()
        kernel = write_kernel(tmp_path / str(remainder), takes_turns(remainder))
        configs.append(configure(kernel, ivshmem={"path": str(shared.path), "size": MIB}))

    async with running(configs[0]) as one, running(configs[1]) as other:
        await one.debug.wait_for(b"!")
        await other.debug.wait_for(b"!")

    assert shared.word(QUESTION) == TURNS


async def test_guest_shares_the_memory_before_and_after_a_reboot(
    tmp_path: Path, shared: Shared
) -> None:
    async with owned(echoing(tmp_path, shared)) as held:
        await shared.answers(41)
        await held.do(Reboot())
        await shared.answers(7)


async def saved(held: Owned, folder: Path) -> None:
    """Have the running VM written to a new directory, and forgotten."""
    await trio.Path(folder).mkdir()
    await held.do(Pause(), Snapshot(f"file://{folder}"), Delete())


def restore(folder: Path) -> Restore:
    return Restore(RestoreConfig(source_url=f"file://{folder}"))


async def test_restored_guest_has_the_memory_where_it_had_it_with_what_the_file_has_now(
    tmp_path: Path, shared: Shared
) -> None:
    async with owned(echoing(tmp_path, shared)) as held:
        await shared.answers(41)
        tree = held.owner.info().device_tree
        assert tree is not None
        assert bars(tree["__ivshmem"].to_json())[1]["base"] == BAR
        await saved(held, tmp_path / "snapshot")
        shared.put(ANSWER, 0)

        await held.do(restore(tmp_path / "snapshot"))

        assert held.owner.info().device_tree == tree
        assert shared.word(ANSWER) == 0
        await held.do(Resume())
        await shared.answers(99)


def with_half_the_size(config: dict[str, dict[str, object]]) -> None:
    config["ivshmem"]["size"] = MIB // 2


def with_no_memory(config: dict[str, dict[str, object]]) -> None:
    del config["ivshmem"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_half_the_size, "has 1048576 bytes and ivshmem.size (--ivshmem size=) says 524288"),
        (with_no_memory, "restore it with its own config.json"),
    ],
)
async def test_snapshot_with_another_memory_is_refused(
    tmp_path: Path,
    shared: Shared,
    change: Callable[[dict[str, dict[str, object]]], None],
    says: str,
) -> None:
    async with owned(echoing(tmp_path, shared)) as held:
        await saved(held, tmp_path / "snapshot")
        file = trio.Path(tmp_path / "snapshot" / "config.json")
        config = json.loads(await file.read_text())
        change(config)
        await file.write_text(json.dumps(config))

        with pytest.raises(ConfigError) as caught:
            await held.do(restore(tmp_path / "snapshot"))

    assert says in str(caught.value)


async def test_snapshot_that_has_the_memory_where_it_cannot_be_is_refused(
    tmp_path: Path, shared: Shared
) -> None:
    async with owned(echoing(tmp_path, shared)) as held:
        await shared.answers(41)
        await saved(held, tmp_path / "snapshot")
        file = trio.Path(tmp_path / "snapshot" / "state.json")
        text, place = await file.read_text(), f'\\"memory_address\\":{BAR}'
        assert text.count(place) == 1
        await file.write_text(text.replace(place, place + "1"))

        with pytest.raises(ConfigError, match=r"BAR 2 .* of __ivshmem is at 0x780000001, "):
            await held.do(restore(tmp_path / "snapshot"))


async def test_snapshot_whose_file_is_gone_is_refused_by_its_name(
    tmp_path: Path, shared: Shared
) -> None:
    async with owned(echoing(tmp_path, shared)) as held:
        await saved(held, tmp_path / "snapshot")
        await trio.Path(shared.path).unlink()

        with pytest.raises(HostError, match=str(shared.path)):
            await held.do(restore(tmp_path / "snapshot"))


async def test_memory_that_finds_no_room_refuses_the_boot_and_leaves_nothing(
    tmp_path: Path, shared: Shared
) -> None:
    os.truncate(shared.path, 64 << 30)  # The area has 28 GiB.
    config = configure(
        write_kernel(tmp_path, HALT),
        cpus={"boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": 36},
        ivshmem={"path": str(shared.path), "size": 64 << 30},
    )
    before = holdings()

    with pytest.raises(ExceptionGroup) as caught:
        async with running(config):
            raise AssertionError("The machine runs")

    cause = sole_cause(caught.value)
    assert isinstance(cause, ConfigError)
    assert "has no room for 0x1000000000 bytes" in str(cause)
    check_nothing_left(before)


@pytest.mark.parametrize("local", [False, True])
async def test_guest_that_moves_finds_the_memory_of_the_file_there(
    place: Path, shared: Shared, local: bool
) -> None:
    sections = {"ivshmem": {"path": str(shared.path), "size": MIB}}
    async with two_hosts(place) as (one, other):
        await one.boot(place, ECHO, memory={"size": 64 * MIB, "shared": True}, **sections)
        await shared.answers(41)
        tree = (await one.client.info()).device_tree

        await move(one, other, f"unix:{place}/m", local=local)

        assert (await other.client.info()).device_tree == tree
        await shared.answers(99)


async def test_guest_does_not_move_to_where_its_file_is_not(place: Path, shared: Shared) -> None:
    sections = {"ivshmem": {"path": str(shared.path), "size": MIB}}
    said: list[str] = []

    async def receive(*, task_status: trio.TaskStatus[None]) -> None:
        said.append(await other.refused_receive(f"unix:{place}/m", task_status=task_status))

    async with two_hosts(place) as (one, other):
        await one.boot(place, ECHO, **sections)
        await shared.answers(41)
        shared.path.unlink()

        async with trio.open_nursery() as nursery:
            await nursery.start(receive)
            await one.refused_send(f"unix:{place}/m")

        assert str(shared.path) in said[0]
        await shared.answers(99)
