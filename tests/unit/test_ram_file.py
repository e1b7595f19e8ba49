"""RAM to a file: what is zero stays a hole, and each way of writing leaves the same bytes."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.boot.layout import RamRange
from vmm.errors import HostError
from vmm.kvm_cffi.memory import address_of
from vmm.kvm_cffi.ram_file import read_ram, write_ram
from vmm.machine.memory import GuestMemory
from vmm.machine.zones import Zone
from vmm.page import PAGE
from vmm.snapshot.memory_file import write_memory

PAGES = 3000
"""More than pieces on their way can hold, and no multiple of anything."""


@pytest.fixture
def ram() -> Iterator[mmap.mmap]:
    """Memory with stretches of noise of all lengths between stretches of zeros."""
    source = random.Random(5)
    with mmap.mmap(-1, PAGES * PAGE) as memory:
        at = 7
        while at < PAGES:
            size = min(source.choice((1, 3, 700)), PAGES - at)
            memory[at * PAGE : (at + size) * PAGE] = source.randbytes(size * PAGE)
            at += size + source.choice((1, 2, 40))
        yield memory


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A new file, opened as one of a snapshot."""
    fd = os.open(tmp_path / "ram", os.O_WRONLY | os.O_CREAT)
    yield fd
    os.close(fd)


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def write_directly(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"the file system of this directory has no direct I/O: {error}")


def content(memory: mmap.mmap) -> int:
    """The bytes of pages that are not zero."""
    pages = (memory[at : at + PAGE] for at in range(0, len(memory), PAGE))
    return sum(PAGE for page in pages if any(page))


@pytest.mark.parametrize("direct", [False, True])
def test_ram_with_zeros_written_leaves_its_bytes_and_holes(
    ram: mmap.mmap, fd: int, tmp_path: Path, direct: bool
) -> None:
    if direct:
        write_directly(fd)
    os.truncate(fd, len(ram))
    written = write_ram(fd, address_of(ram), len(ram), 0)
    assert written == content(ram)
    assert (tmp_path / "ram").read_bytes() == ram[:]
    assert os.fstat(fd).st_blocks * 512 < len(ram)
    assert is_direct(fd) == direct


def test_ram_at_an_address_that_direct_io_refuses_goes_through_the_cache(
    ram: mmap.mmap, fd: int, tmp_path: Path
) -> None:
    write_directly(fd)
    odd = 1
    size = len(ram) - PAGE
    write_ram(fd, address_of(ram) + odd, size, 0)
    os.truncate(fd, size)
    assert (tmp_path / "ram").read_bytes() == ram[odd : odd + size]
    assert not is_direct(fd)


def test_ram_for_a_file_that_may_not_grow_is_refused_with_the_hosts_error(
    ram: mmap.mmap, fd: int
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGES * PAGE // 2, hard))
    try:
        with pytest.raises(HostError, match="File too large"):
            write_ram(fd, address_of(ram), len(ram), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_ram_for_a_file_that_is_not_open_for_writing_is_refused(
    ram: mmap.mmap, tmp_path: Path
) -> None:
    (tmp_path / "closed").touch()
    fd = os.open(tmp_path / "closed", os.O_RDONLY)
    try:
        with pytest.raises(HostError, match="Bad file descriptor"):
            write_ram(fd, address_of(ram), len(ram), 0)
    finally:
        os.close(fd)


def test_ram_is_read_back_from_where_it_was_written(
    ram: mmap.mmap, fd: int, tmp_path: Path
) -> None:
    at = 5 * PAGE
    write_ram(fd, address_of(ram), len(ram), at)
    os.truncate(fd, at + len(ram))
    source = os.open(tmp_path / "ram", os.O_RDONLY)
    try:
        with mmap.mmap(-1, len(ram)) as back:
            assert read_ram(source, address_of(back), len(back), at) == len(ram)
            assert back[:] == ram[:]
    finally:
        os.close(source)


async def test_ram_of_a_snapshot_goes_past_the_page_cache(fd: int, tmp_path: Path) -> None:
    write_directly(fd)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    size = PAGES // 2 * PAGE
    with GuestMemory.open([Zone("ram", size, thp=False)], [RamRange(0, size)]) as memory:
        memory.write(PAGE, b"here")
        assert await write_memory(fd, str(tmp_path / "ram"), memory) == PAGE
    assert is_direct(fd)
    assert (tmp_path / "ram").read_bytes().strip(b"\0") == b"here"
