"""What of RAM the first pass sends: by the memory's kind, what holds anything and no more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.resident import resident
from tests.unit.test_write_record import pages_of
from vmm.boot.layout import RamRange
from vmm.kvm_cffi import PageSet
from vmm.machine.memory import GuestMemory
from vmm.machine.zones import Zone
from vmm.migration.chunks import CHUNK_PAGES, windows

PAGE = 4096
GPA = 1 << 30
PAGES = CHUNK_PAGES + 100
SIZE = PAGES * PAGE
WRITTEN = {0, 7, 8, 9, 63, 64, 1000, CHUNK_PAGES - 1, CHUNK_PAGES, PAGES - 1}


@contextmanager
def memory_of(**kind: object) -> Iterator[GuestMemory]:
    zone = Zone("ram", SIZE, thp=False, **kind)  # type: ignore[arg-type]
    with GuestMemory.open([zone], [RamRange(GPA, SIZE)]) as memory:
        yield memory


def sent(memory: GuestMemory) -> set[int]:
    """The pages of the first pass, by number."""
    sets = [PageSet(GPA, PAGES)]
    sets[0].fill()
    pagemap_fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        tables = [each.table() for each in windows(memory.regions, sets, pagemap_fd)]
    finally:
        os.close(pagemap_fd)
    assert len(tables) == 2
    return {(gpa - GPA) // PAGE for gpa in pages_of(sets)}


@pytest.mark.parametrize("kind", [{}, {"shared": True}, {"prefault": True}])
def test_first_pass_has_what_was_written_and_touches_nothing_else(kind: dict[str, object]) -> None:
    with memory_of(**kind) as memory:
        for _ in memory.populate():
            pass
        for page in WRITTEN:
            memory.write(GPA + page * PAGE + 5, b"x")
        memory.write(GPA + 500 * PAGE, bytes(PAGE))
        before = resident(memory)

        assert sent(memory) == WRITTEN
        assert resident(memory) == before


@pytest.mark.parametrize("shared", [False, True])
def test_first_pass_has_all_of_a_file_that_has_a_name(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "ram"
    path.touch()
    os.truncate(path, SIZE)
    with path.open("r+b") as file:
        file.seek(3 * PAGE)
        file.write(b"from the file")
    with memory_of(file=str(path), shared=shared) as memory:
        memory.write(GPA + 3 * PAGE, bytes(PAGE))
        memory.write(GPA + 900 * PAGE, b"x")

        # The other side's may hold anything, be it what this one has only now cleared.
        assert sent(memory) == set(range(PAGES))


@pytest.mark.parametrize("shared", [False, True])
def test_first_pass_has_what_was_written_to_a_file_without_a_name(
    tmp_path: Path, shared: bool
) -> None:
    with memory_of(file=str(tmp_path), shared=shared) as memory:
        memory.write(GPA + 3 * PAGE, bytes(PAGE))
        memory.write(GPA + 900 * PAGE, b"x")

        assert sent(memory) == {900}
