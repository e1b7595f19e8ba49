"""A machine that is restored with prefault has all of its RAM before it goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.machines import MIB, Running, configure, running
from tests.kvm.test_snapshot import restored, save

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

RAM = 64 * MIB


def resident(vm: Running) -> int:
    """What the memory's file takes of the host's RAM, in bytes."""
    [region] = vm.machine.memory.regions
    assert region.fd is not None
    return os.fstat(region.fd).st_blocks * 512


@pytest.mark.parametrize("prefault", [False, True])
async def test_restored_memory_is_touched_as_asked(tmp_path: Path, prefault: bool) -> None:
    kernel = write_kernel(tmp_path, programs.HALT)
    config = configure(kernel, memory={"size": RAM, "shared": True})
    async with running(config) as vm:
        await save(vm, config, tmp_path / "snapshot")

    async with restored(tmp_path / "snapshot", prefault=prefault) as vm:
        assert (resident(vm) == RAM) == prefault
