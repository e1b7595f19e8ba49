"""Fixtures for pytest: ``pytest_plugins = ["vmm.testing.plugin"]`` in a conftest.py.

Needs pytest and pytest-trio. The ``vm`` fixtures start a real VMM, and so need KVM; a project says
what they boot by a fixture ``vm_config`` of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from vmm.console import WindowSize
from vmm.testing.backends import MemoryConsole, MemoryTap
from vmm.testing.memory import FakeMemory
from vmm.testing.namespace import network_namespace
from vmm.testing.process import VmmProcess

START_S = 60.0
"""How long a VMM may take until its API answers; an emulated host is slow."""


@pytest.fixture
def fake_memory() -> FakeMemory:
    """Guest RAM without a guest, 1 MiB at address 0."""
    return FakeMemory()


@pytest.fixture
def memory_console() -> MemoryConsole:
    """A console's back end that the test plays, a terminal of 25 lines and 80 columns."""
    return MemoryConsole(WindowSize(25, 80))


@pytest.fixture
def memory_tap() -> Iterator[MemoryTap]:
    """A tap of two pairs of queues whose far ends the test holds."""
    with MemoryTap(2) as tap:
        yield tap


@pytest.fixture
def own_network() -> Iterator[None]:
    """A network namespace for the test alone. Needs CAP_SYS_ADMIN."""
    with network_namespace():
        yield


@pytest.fixture
def vmm_directory() -> Iterator[Path]:
    """Where a VMM's socket and events are; its path is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="vmm-") as directory:
        yield Path(directory)


@pytest.fixture
async def vmm_process(vmm_directory: Path) -> AsyncIterator[VmmProcess]:
    """A VMM whose API answers, without a VM."""
    async with VmmProcess.start(vmm_directory, api=True) as vmm:
        await vmm.wait_until_served(START_S)
        yield vmm


@pytest.fixture
def vm_config() -> Mapping[str, object]:
    """The configuration of the VM; a project has to say it."""
    raise pytest.UsageError(
        "The fixture vm_config says which VM the vm fixtures make; write one that returns a "
        "VmConfig as JSON has it, such as {'payload': {'kernel': '/boot/vmlinuz'}}"
    )


@pytest.fixture
async def vm(vmm_process: VmmProcess, vm_config: Mapping[str, object]) -> VmmProcess:
    """A VMM with a VM that is created and not booted."""
    await vmm_process.put("vm.create", dict(vm_config))
    return vmm_process


@pytest.fixture
async def vm_booted(vm: VmmProcess) -> VmmProcess:
    """A VMM with a VM that runs."""
    await vm.put("vm.boot")
    return vm
