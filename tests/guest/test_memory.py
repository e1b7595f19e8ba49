"""RAM of every backing under a stock kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import booted
from tools.images.kernels import Kernel

pytestmark = pytest.mark.guest

HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
HUGE_PAGES_NEEDED = 128


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Have 256 MiB in huge pages of 2 MiB on this host, and give them back."""
    before = HUGE_PAGES.read_text()
    try:
        HUGE_PAGES.write_text(str(int(before) + HUGE_PAGES_NEEDED))
    except PermissionError:
        pytest.skip("only root may reserve huge pages")
    try:
        if int(HUGE_PAGES.read_text()) < int(before) + HUGE_PAGES_NEEDED:
            pytest.skip(f"this host has no {HUGE_PAGES_NEEDED} huge pages left")
        yield
    finally:
        HUGE_PAGES.write_text(before)


@pytest.mark.usefixtures("huge_pages")
async def test_guest_runs_in_zones_of_each_backing(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    zones = [
        "id=huge,size=256M,hugepages=on,prefault=on",
        f"id=file,size=128M,file={place / 'ram'},shared=on",
        "id=bound,size=128M,host_numa_node=0,mergeable=on,reserve=on",
    ]
    async with booted(
        place, linux, minimal, "--memory", "size=0", "--memory-zone", *zones
    ) as guest:
        total_kib = int((await guest.run("grep MemTotal /proc/meminfo")).split()[1])
        await guest.run("dd if=/dev/zero of=/dev/shm/fill bs=1M count=300 2>/dev/null || true")

        assert 440 << 10 < total_kib < 512 << 10
        assert (place / "ram").stat().st_blocks > 0
