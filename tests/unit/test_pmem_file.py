"""Files as persistent memory: what may be one, how much of it is shown, and where writes go."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmm.config.pmem import PmemConfig
from vmm.errors import ConfigError, HostError
from vmm.machine.pmems import open_pmem
from vmm.virtio.pmem import Pmem

MIB = 1 << 20
GPA = 0x40_0000_0000


class Shown:
    """Device memory that keeps what it is asked to show."""

    def __init__(self) -> None:
        self.pieces: dict[int, tuple[int, int, int]] = {}

    @contextmanager
    def shown(self, hva: int, size: int, *, id: str, segment: int, alignment: int) -> Iterator[int]:
        self.pieces[GPA] = (hva, size, segment)
        assert alignment == 2 * MIB
        try:
            yield GPA
        finally:
            del self.pieces[GPA]

    def write(self, data: bytes) -> None:
        """Write to the beginning of the memory, as a guest would."""
        [(hva, _, _)] = self.pieces.values()
        ctypes.memmove(hva, data, len(data))

    def read(self, size: int) -> bytes:
        [(hva, _, _)] = self.pieces.values()
        return ctypes.string_at(hva, size)


@pytest.fixture
def memory() -> Shown:
    return Shown()


@contextmanager
def opened(memory: Shown, **config: object) -> Iterator[Pmem]:
    given = PmemConfig.model_validate({name: _plain(value) for name, value in config.items()})
    with open_pmem(given, "_pmem0", memory) as device:  # type: ignore[arg-type]
        yield device


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def make_file(path: Path, size: int) -> Path:
    path.write_bytes(b"first")
    os.truncate(path, size)
    return path


def test_file_is_shown_whole_and_what_is_written_is_in_it(tmp_path: Path, memory: Shown) -> None:
    file = make_file(tmp_path / "file", 4 * MIB)

    with opened(memory, file=file, pci_segment=3) as device:
        assert device.save() == {"start": GPA, "size": 4 * MIB}
        [(_, size, segment)] = memory.pieces.values()
        assert (size, segment) == (4 * MIB, 3)
        assert memory.read(5) == b"first"
        memory.write(b"after")

    assert memory.pieces == {}
    assert file.read_bytes()[:6] == b"after\0"


def test_part_of_a_file_is_shown_when_a_size_is_given(tmp_path: Path, memory: Shown) -> None:
    file = make_file(tmp_path / "file", 4 * MIB + 5)

    with opened(memory, file=file, size=2 * MIB) as device:
        assert device.save()["size"] == 2 * MIB

    assert file.stat().st_size == 4 * MIB + 5


def test_discarded_writes_never_reach_the_file_which_may_be_read_only(
    tmp_path: Path, memory: Shown
) -> None:
    file = make_file(tmp_path / "file", 2 * MIB)
    file.chmod(0o400)

    for _ in range(2):
        with opened(memory, file=file, discard_writes=True):
            assert memory.read(5) == b"first"
            memory.write(b"after")
            assert memory.read(5) == b"after"

    assert file.read_bytes()[:5] == b"first"


@pytest.mark.parametrize("discard_writes", [False, True])
def test_directory_has_a_file_without_a_name(
    tmp_path: Path, memory: Shown, discard_writes: bool
) -> None:
    with opened(memory, file=tmp_path, size=2 * MIB, discard_writes=discard_writes):
        assert memory.read(5) == bytes(5)
        memory.write(b"after")
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [0, 5, MIB, 3 * MIB])
def test_file_of_another_size_is_refused_with_the_way_out(
    tmp_path: Path, memory: Shown, size: int
) -> None:
    file = make_file(tmp_path / "file", size)

    with (
        pytest.raises(ConfigError, match=f"has {size} bytes.* 2097152; lengthen it.*size="),
        opened(memory, file=file),
    ):
        pass


def test_size_beyond_the_file_is_refused(tmp_path: Path, memory: Shown) -> None:
    file = make_file(tmp_path / "file", 2 * MIB)

    with (
        pytest.raises(ConfigError, match="has 2097152 bytes, less than the 4194304 of"),
        opened(memory, file=file, size=4 * MIB),
    ):
        pass


def test_directory_without_a_size_is_refused(tmp_path: Path, memory: Shown) -> None:
    with (
        pytest.raises(ConfigError, match=r"is a directory.*give the size"),
        opened(memory, file=tmp_path),
    ):
        pass


def test_pipe_is_refused_at_once(tmp_path: Path, memory: Shown) -> None:
    os.mkfifo(tmp_path / "pipe")

    with (
        pytest.raises(ConfigError, match="neither a regular file"),
        opened(memory, file=tmp_path / "pipe"),
    ):
        pass


@pytest.mark.parametrize(("discard_writes", "word"), [(False, "written"), (True, "read")])
def test_file_that_cannot_be_opened_is_named(
    tmp_path: Path, memory: Shown, discard_writes: bool, word: str
) -> None:
    with (
        pytest.raises(HostError, match=f"absent failed.*ENOENT.*can be {word}"),
        opened(memory, file=tmp_path / "absent", discard_writes=discard_writes),
    ):
        pass


def test_device_that_cannot_be_mapped_is_named(memory: Shown) -> None:
    with pytest.raises(ConfigError, match="/dev/null"), opened(memory, file="/dev/null"):
        pass
