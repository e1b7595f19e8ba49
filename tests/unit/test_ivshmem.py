"""Shared memory: the function on the bus, and its file: what may be one, and what is refused."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from vmm.config.ivshmem import IvshmemConfig
from vmm.errors import ConfigError, HostError
from vmm.legacy.ivshmem import Ivshmem
from vmm.legacy.saved import SavedIvshmem
from vmm.machine.device_memory import MovingMemory
from vmm.machine.ivshmems import open_ivshmem

MIB = 1 << 20


def config_of(path: Path, **fields: object) -> IvshmemConfig:
    return IvshmemConfig.model_validate({"path": str(path), "size": MIB, **fields})


def made_file(path: Path, size: int = MIB) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def test_function_is_the_plain_kind_with_registers_and_memory() -> None:
    device = Ivshmem("__ivshmem", memoryview(bytearray(MIB)))
    space = device.configuration
    space.add_bar(device.bar, 0xE000_0000)
    space.add_bar(device.memory.bar, 0x40_0000_0000)

    assert space.read(0, 4) == 0x1110_1AF4
    assert space.read(8, 4) == 0x0500_0001
    assert space.read(0x10, 4) == 0xE000_0000
    assert space.read(0x18, 8) == 0x40_0000_000C
    space.write(0x18, 4, 0xFFFF_FFFF)
    assert space.read(0x18, 4) == 0xFFF0_000C


def test_registers_read_as_zero_and_drop_what_is_written() -> None:
    memory = bytearray(4096)
    device = Ivshmem("__ivshmem", memoryview(memory))

    for offset in (0, 4, 8, 12, 252):
        device.write(offset, 4, 0xFFFF_FFFF)
        assert device.read(offset, 4) == 0
    assert memory == bytes(4096)


def test_state_of_another_size_is_refused() -> None:
    device = Ivshmem("__ivshmem", memoryview(bytearray(MIB)))

    device.load(device.save())
    with pytest.raises(ConfigError, match=r"has 2097152 bytes and ivshmem\.size .* says 1048576"):
        device.load(SavedIvshmem(size=2 * MIB))


def test_size_that_is_not_given_is_128_mib() -> None:
    assert IvshmemConfig.model_validate({"path": "/shared"}).size == 128 * MIB


def test_file_is_shared_both_ways_as_far_as_it_is_asked_for(tmp_path: Path) -> None:
    path = made_file(tmp_path / "shared", 2 * MIB)

    with open_ivshmem(config_of(path), "__ivshmem") as device, path.open("r+b") as file:
        other = mmap.mmap(file.fileno(), 0)
        memory = device.memory.memory
        assert len(memory) == MIB
        memory[:5] = b"hello"
        other[MIB - 5 : MIB] = b"world"
        assert (other[:5], bytes(memory[-5:])) == (b"hello", b"world")
        other.close()

    assert path.stat().st_size == 2 * MIB


def test_file_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "absent"

    with (
        pytest.raises(HostError, match=r"absent.*ivshmem\.path .* it is not made"),
        open_ivshmem(config_of(path), "__ivshmem"),
    ):
        raise AssertionError

    assert not path.exists()


def test_file_that_is_shorter_is_refused_and_not_lengthened(tmp_path: Path) -> None:
    path = made_file(tmp_path / "short", MIB - 1)

    with (
        pytest.raises(ConfigError, match=r"short has 1048575 bytes, less than the 1048576 of ivsh"),
        open_ivshmem(config_of(path), "__ivshmem"),
    ):
        raise AssertionError

    assert path.stat().st_size == MIB - 1


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with (
            pytest.raises(ConfigError, match=r"is no regular file; give such a one \(ivshmem"),
            open_ivshmem(config_of(path), "__ivshmem"),
        ):
            raise AssertionError


class Slots:
    """A VM that keeps what it is told of memory slots."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int) -> None:
        self.calls.append((slot, gpa, size))


def test_memory_leaves_one_place_before_it_is_in_another() -> None:
    slots = Slots()
    moving = MovingMemory(slots, 7, memoryview(bytearray(4096)))  # type: ignore[arg-type]

    for base in (0x1000, 0x8000, None, None):
        moving.move(base)

    assert slots.calls == [(7, 0x1000, 4096), (7, 0x1000, 0), (7, 0x8000, 4096), (7, 0x8000, 0)]


def test_access_that_comes_before_the_slot_is_made_in_the_memory() -> None:
    memory = bytearray(4096)
    moving = MovingMemory(Slots(), 7, memoryview(memory))  # type: ignore[arg-type]

    moving.write(8, 4, 0x1234_5678)
    moving.write(4094, 4, 0xAABB_CCDD)

    assert memory[8:12] == bytes.fromhex("78563412")
    assert memory[4094:] == bytes.fromhex("ddcc")
    assert (moving.read(8, 2), moving.read(4094, 8)) == (0x5678, 0xCCDD)
