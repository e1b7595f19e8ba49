"""What the usual programs of a Linux guest show of its machine, as booted and after hot plug."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.guest.conftest import Guest, booted
from tests.guest.test_cpu_hotplug import bring_up, has, resize
from tests.guest.test_resize import ONLINE, wait_for_ram
from tests.guest.test_virtio_mem import GROWING, MOVABLE, total_mib, wait_for_blocks, wait_for_size
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel

pytestmark = pytest.mark.guest

MIB = 1 << 20
BLOCK = 128 * MIB
IDENTITY = {
    "system_manufacturer": "Example",
    "system_product_name": "Machine",
    "system_version": "7",
    "system_serial_number": "S-1234",
    "system_uuid": "6e9f0a5c-1c6b-4b4e-9c52-5a1f0a2b3c4d",
    "system_sku_number": "K-1",
    "system_family": "Machines",
    "chassis_asset_tag": "shelf 3",
}


@pytest.fixture(scope="module")
def archive(linux: Kernel) -> Path:
    return initramfs(linux, "views")


async def cpus(guest: Guest) -> dict[str, str]:
    """What lscpu says, line by line."""
    lines = (await guest.run("lscpu")).splitlines()
    return {name.strip(): value.strip() for name, _, value in (ln.partition(":") for ln in lines)}


async def blocks(guest: Guest) -> list[tuple[int, int, int | None]]:
    """What lsmem says is online: where each range begins and its bytes, and the node if any."""
    columns = (
        "RANGE,SIZE,STATE,NODE"
        if "node1" in await guest.run("ls /sys/devices/system/node")
        else "RANGE,SIZE,STATE"
    )
    found = []
    for line in (await guest.run(f"lsmem -bnr -o {columns}")).splitlines():
        words = line.split()
        if len(words) >= 3 and words[2] == "online":
            start = int(words[0].partition("-")[0], 16)
            found.append((start, int(words[1]), int(words[3]) if len(words) > 3 else None))
    return found


async def nodes(guest: Guest) -> dict[str, str]:
    """What numactl says of the nodes, line by line."""
    lines = (await guest.run("numactl --hardware")).splitlines()
    return {name.strip(): rest.strip() for name, _, rest in (ln.partition(":") for ln in lines)}


async def test_processors_nodes_and_memory_are_seen_where_they_were_plugged(
    place: Path, linux: Kernel, archive: Path
) -> None:
    async with booted(
        place,
        linux,
        archive,
        *("--cpus", "boot=2,max=4,topology=2:1:1:2", "--memory", f"size=0,{GROWING}"),
        "--memory-zone",
        "id=near,size=256M",
        "id=far,size=128M,hotplug_size=256M",
        "--numa",
        "guest_numa_id=0,cpus=[0-1],memory_zones=[near],distances=[1@25]",
        "guest_numa_id=1,cpus=[2-3],memory_zones=[far]",
        extra=MOVABLE,
    ) as guest:
        cpus_before, nodes_before = await cpus(guest), await nodes(guest)
        blocks_before = await blocks(guest)
        await resize(guest, 4)
        await has(guest, "0-3")
        await bring_up(guest, 2, 3)
        await guest.vmm.put("vm.resize-zone", {"id": "far", "desired_ram": 3 * BLOCK})
        await wait_for_size(guest, 640)
        await wait_for_blocks(guest, 5)
        cpus_after, nodes_after = await cpus(guest), await nodes(guest)
        blocks_after = await blocks(guest)

    wanted = {"Thread(s) per core": "2", "NUMA node(s)": "2", "NUMA node0 CPU(s)": "0,1"}
    assert wanted.items() <= cpus_before.items()
    assert (cpus_before["CPU(s)"], cpus_before["Socket(s)"]) == ("2", "1")
    wanted["NUMA node1 CPU(s)"] = "2,3"
    assert wanted.items() <= cpus_after.items()
    assert (cpus_after["CPU(s)"], cpus_after["Socket(s)"]) == ("4", "2")

    assert nodes_before["available"] == nodes_after["available"] == "2 nodes (0-1)"
    assert (nodes_before["node 1 cpus"], nodes_after["node 1 cpus"]) == ("", "2 3")
    assert nodes_after["node 0 cpus"] == "0 1"
    sizes = [int(each["node 1 size"].split()[0]) for each in (nodes_before, nodes_after)]
    assert sizes[1] - sizes[0] == 256
    assert [nodes_after[number].split() for number in ("0", "1")] == [["10", "25"], ["25", "10"]]

    assert blocks_before == [(0, 2 * BLOCK, 0), (2 * BLOCK, BLOCK, 1)]
    assert blocks_after == [*blocks_before, (4 << 30, 2 * BLOCK, 1)]


async def test_memory_that_came_by_acpi_and_the_machines_identity_are_seen(
    place: Path, linux: Kernel, archive: Path
) -> None:
    platform = ",".join(f"{name}={value}" for name, value in IDENTITY.items())
    async with booted(
        place,
        linux,
        archive,
        *("--memory", "size=256M,hotplug_size=256M"),
        *("--platform", f"{platform},oem_strings=[one,two]"),
    ) as guest:
        before, total = await blocks(guest), await total_mib(guest)
        await guest.vmm.put("vm.resize", {"desired_ram": 3 * BLOCK})
        await wait_for_ram(guest, total + 100)
        await guest.run(f"{ONLINE} 2>/dev/null || true")
        after = await blocks(guest)
        tables = await guest.run("dmidecode")
        oem = await guest.run("dmidecode --oem-string 2")

    assert before == [(0, 2 * BLOCK, None)]
    assert after == [*before, (4 << 30, BLOCK, None)]
    found = re.findall(r"^\t([\w ]+): (.*)$", tables, re.MULTILINE)
    fields = dict(reversed(found))  # Those of the system come before those of its chassis.
    seen = {
        "Manufacturer": "Example",
        "Product Name": "Machine",
        "Serial Number": "S-1234",
        "UUID": IDENTITY["system_uuid"],
        "SKU Number": "K-1",
        "Family": "Machines",
        "Asset Tag": "shelf 3",
        "String 1": "one",
    }
    assert {name: fields.get(name) for name in seen} == seen
    assert oem == "two\n"
    assert "SMBIOS 3.2.0 present" in tables
