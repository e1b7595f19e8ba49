"""RAM that one VMM hands over to another: both map it, and neither can take it from the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmm.boot.layout import RamRange
from vmm.errors import ConfigError, PeerError
from vmm.machine.memory import GuestMemory
from vmm.machine.zones import Zone

SIZE = 4 << 20
ZONE = Zone("ram", SIZE, shared=True)


@contextmanager
def memory_of(given: int | None = None) -> Iterator[GuestMemory]:
    """RAM of its own, or that was handed over."""
    handed_over = None if given is None else {0: given}
    with GuestMemory.open([ZONE], [RamRange(0, SIZE)], (), handed_over) as memory:
        yield memory


def descriptor_of(memory: GuestMemory) -> int:
    [region] = memory.regions
    assert region.fd is not None
    return region.fd


def test_memory_that_is_handed_over_is_the_same() -> None:
    with memory_of() as given:
        given.write(12345, b"handed over")
        with memory_of(descriptor_of(given)) as taken:
            assert taken.read(12345, 11) == b"handed over"
            taken.write(0, b"back")
            assert given.read(0, 4) == b"back"


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_memory_cannot_be_cut_off_or_grown_by_whoever_has_its_descriptor(size: int) -> None:
    with memory_of() as memory:
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor_of(memory), size)

        memory.write(SIZE - 4, b"last")
        memory.discard(0, SIZE)
        assert os.fstat(descriptor_of(memory)).st_blocks == 0
        assert memory.read(SIZE - 4, 4) == bytes(4)


def test_memory_that_could_be_cut_off_is_not_taken(tmp_path: Path) -> None:
    file = os.open(tmp_path / "ram", os.O_CREAT | os.O_RDWR)
    loose = os.memfd_create("loose", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for fd in (file, loose):
            os.ftruncate(fd, SIZE)
            with pytest.raises(PeerError, match="could be cut off"), memory_of(fd):
                pass
    finally:
        os.close(file)
        os.close(loose)


def test_memory_that_is_too_short_is_not_taken() -> None:
    with (
        GuestMemory.open([Zone("ram", SIZE // 2, shared=True)], [RamRange(0, SIZE // 2)]) as short,
        pytest.raises(ConfigError, match=f"has {SIZE // 2} bytes and needs {SIZE}"),
        memory_of(descriptor_of(short)),
    ):
        pass
