"""The core file of a stock kernel: its vCPUs, and its memory where its symbols say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import booted
from tools.images.kernels import Kernel
from vmm.snapshot.core_file import EHDR, NT_PRSTATUS, PHDR, PT_LOAD, PT_NOTE

pytestmark = pytest.mark.guest

TEXT = 0xFFFF_FFFF_8000_0000
"""Where a kernel that was not moved has physical address 0.

Linux Documentation/arch/x86/x86_64/mm.rst.
"""
PADDING = 4


def segments(core: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The kind of each, where it begins in the file and in the guest, and its size in the file."""
    first, count = EHDR.unpack_from(core)[5], EHDR.unpack_from(core)[10]
    for number in range(count):
        kind, _, offset, _, gpa, size, _, _ = PHDR.unpack_from(core, first + number * PHDR.size)
        yield kind, offset, gpa, size


def memory(core: bytes, gpa: int, size: int) -> bytes:
    for kind, offset, start, length in segments(core):
        if kind == PT_LOAD and start <= gpa < start + length:
            return core[offset + gpa - start :][:size]
    raise AssertionError(f"no segment has {gpa:#x}")


def notes(core: bytes) -> list[int]:
    """The kinds of the notes."""
    found = []
    for kind, at, _, size in segments(core):
        end = at + size if kind == PT_NOTE else at
        while at < end:
            name, content, number = (
                int.from_bytes(core[at + 4 * each : at + 4 * each + 4], "little")
                for each in range(3)
            )
            found.append(number)
            at += 12 + sum(-(-each // PADDING) * PADDING for each in (name, content))
    return found


async def test_core_of_a_running_kernel_has_its_processors_and_its_symbols(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    async with booted(place, linux, minimal, "--cpus", "boot=2") as guest:
        symbol = await guest.run("grep ' linux_banner$' /proc/kallsyms")
        version = await guest.run("cat /proc/version")
        path = place / "core"
        await guest.vmm.put("vm.coredump", {"destination_url": f"file://{path}"})
        assert await guest.run("cat /proc/version") == version

        core = path.read_bytes()
        banner = memory(core, int(symbol.split()[0], 16) - TEXT, len(version))
        assert banner.decode() == version
        assert notes(core).count(NT_PRSTATUS) == 2
