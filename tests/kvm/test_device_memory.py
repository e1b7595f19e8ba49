"""Memory of devices on a real machine: where it is, that it makes room again, and its faults."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import check_nothing_left, holdings
from tests.kvm.guests.machines import configure, running
from tests.kvm.guests.programs import HALT
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError
from vmm.machine.scope import sole_cause

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

MIB = 1 << 20
GIB = 1 << 30
ALIGNMENT = 2 * MIB


def configuration(folder: Path, *pmem: dict[str, object]) -> VmConfig:
    return configure(
        write_kernel(folder, HALT),
        pmem=list(pmem),
        platform={"num_pci_segments": 2},
        cpus={"boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": 36},
    )


def place_of(tree: dict[str, dict[str, object]], name: str) -> tuple[int, int]:
    """Where a device's memory begins and ends."""
    match tree[name]["resources"]:
        case [{"MmioAddressRange": {"base": int(base), "size": int(size)}}]:
            return base, base + size
        case other:
            raise AssertionError(other)


async def test_every_file_has_a_place_of_its_own_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    os.truncate(file, 4 * MIB)
    given: dict[str, object] = {"file": str(file)}
    config = configuration(
        tmp_path,
        given,
        {**given, "discard_writes": True, "id": "copy"},
        {"file": str(tmp_path), "size": 6 * MIB, "pci_segment": 1},
    )
    async with running(config):
        pass
    before = holdings()

    async with running(config) as vm:
        tree = vm.machine.device_tree

    places = [place_of(tree, name) for name in ("_pmem0", "copy", "_pmem1")]
    assert [end - start for start, end in places] == [4 * MIB, 4 * MIB, 6 * MIB]
    assert all(start % ALIGNMENT == 0 for start, _ in places)
    ordered = sorted(places)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(ordered))
    # The second segment's area is above the first one's.
    assert places[2] == ordered[2]
    check_nothing_left(before)


async def test_memory_that_finds_no_room_refuses_the_boot_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    file.touch()
    os.truncate(file, 16 * GIB)  # An area has 28 GiB.
    config = configuration(tmp_path, *({"file": str(file), "discard_writes": True},) * 2)
    before = holdings()

    with pytest.raises(ExceptionGroup) as caught:
        async with running(config):
            raise AssertionError("The machine runs")

    cause = sole_cause(caught.value)
    assert isinstance(cause, ConfigError)
    assert "has no room for 0x400000000 bytes aligned to 0x200000" in str(cause)
    check_nothing_left(before)
