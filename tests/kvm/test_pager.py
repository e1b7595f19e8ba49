"""RAM that is read when it is touched, by threads of this process and by KVM."""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.kvm_cffi import address_of
from vmm.kvm_cffi.pager import Pager, PagerState

PAGE = 4096
SIZE = 8 << 20
MADV_DONTNEED = 4

pytestmark = pytest.mark.kvm


@pytest.fixture
def content(tmp_path: Path) -> Iterator[int]:
    """A file whose second half is a hole."""
    path = tmp_path / "ram"
    path.write_bytes(b"".join(page.to_bytes(4, "little") * 1024 for page in range(1024)))
    os.truncate(path, SIZE)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@contextmanager
def paged(content: int, data: int = SIZE // 2) -> Iterator[tuple[mmap.mmap, Pager]]:
    """Memory with a pager that was not started."""
    try:
        pager = Pager(content, SIZE)
    except HostError as error:
        pytest.skip(f"userfaultfd cannot be used: {error}")
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory, pager:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        number = pager.add(address_of(memory), SIZE, PAGE, 0)
        pager.mark(number, 0, data)
        yield memory, pager


def wait(pager: Pager) -> PagerState:
    assert select.select([pager.event_fd], [], [], 30)[0]
    return pager.progress.state


def test_thread_that_holds_the_interpreter_s_lock_gets_its_pages(content: int) -> None:
    with paged(content) as (memory, pager):
        pager.start()

        for page in (1023, 0, 512, 700):
            assert memory[page * PAGE : page * PAGE + 4] == page.to_bytes(4, "little")
        assert memory[SIZE - 1] == 0

        assert wait(pager) is PagerState.DONE
        assert memory[: SIZE // 2] == os.pread(content, SIZE // 2, 0)
        assert not any(memory[SIZE // 2 :])
        assert pager.progress.bytes_left == 0


def test_page_that_is_given_back_is_zero_from_then_on(content: int) -> None:
    with paged(content) as (memory, pager):
        pager.start()
        memory.madvise(MADV_DONTNEED, 1000 * PAGE, 24 * PAGE)

        assert not any(memory[1000 * PAGE : SIZE // 2])
        assert wait(pager) is PagerState.DONE
        assert not any(memory[1000 * PAGE : SIZE // 2])
        assert memory[999 * PAGE : 999 * PAGE + 4] == (999).to_bytes(4, "little")


def test_file_that_became_shorter_is_an_error_and_no_zeros(content: int) -> None:
    with paged(content) as (_, pager):
        os.ftruncate(content, PAGE)
        pager.start()

        assert wait(pager) is PagerState.FAILED
        assert pager.progress.error


def test_pager_that_is_closed_early_ends(content: int) -> None:
    with paged(content) as (_, pager):
        pager.start()
