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
        "id=huge,size=256M,hugepages=on,hugepage_size=2M,prefault=on",
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


async def test_guest_sees_the_numa_nodes_as_configured(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    async with booted(
        place,
        linux,
        minimal,
        *("--cpus", "boot=3", "--platform", "num_pci_segments=2", "--memory", "size=0"),
        *("--memory-zone", "id=near,size=256M", "id=far,size=128M", "id=rest,size=64M"),
        "--numa",
        "guest_numa_id=0,cpus=[0],memory_zones=[near],distances=[1@25]",
        "guest_numa_id=1,cpus=[1-2],memory_zones=[far],pci_segments=[1]",
    ) as guest:
        nodes = "/sys/devices/system/node"
        cpus = (await guest.run(f"cat {nodes}/node*/cpulist")).split()
        distances = (await guest.run(f"cat {nodes}/node*/distance")).splitlines()
        totals = (await guest.run(f"grep -h MemTotal {nodes}/node*/meminfo")).splitlines()
        near, far = (int(line.split()[3]) >> 10 for line in totals)
        bridge = await guest.run("cat /sys/devices/pci0001:00/pci_bus/0001:00/cpuaffinity")
        tables = await guest.run("ls /sys/firmware/acpi/tables")

    assert cpus == ["0", "1-2"]
    assert [line.split() for line in distances] == [["10", "25"], ["25", "10"]]
    assert 240 < near < 320  # Zone near, and zone rest that no node has; less the kernel.
    assert 100 < far < 128
    assert int(bridge, 16) == 0b110
    assert {"SRAT", "SLIT"} <= set(tables.split())
