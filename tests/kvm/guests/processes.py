"""VMM processes around tiny kernels, as a user would run them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.kvm.guests.image import write_kernel
from vmm.testing.process import VmmProcess

SECONDS = 30.0
"""How long a loaded host may take for what it does in one."""

SMALL = ("--memory", "size=64M", "--console", "off")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A directory whose path is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="vmm-") as folder:
        yield Path(folder)


def machine(kernel: Path, **sections: object) -> dict[str, object]:
    """A small VmConfig for the API."""
    given = {
        "payload": {"kernel": str(kernel)},
        "memory": {"size": 64 << 20},
        "console": {"mode": "Off"},
    }
    return {**given, **sections}


def guest_arguments(folder: Path, source: str) -> tuple[str, ...]:
    """The command line of a guest whose serial port is the process's standard output."""
    return ("--kernel", str(write_kernel(folder, source)), *SMALL, "--serial", "tty")


@asynccontextmanager
async def running(folder: Path, *arguments: str) -> AsyncIterator[VmmProcess]:
    """Run a VMM that serves the API and has no VM."""
    async with VmmProcess.start(folder, *arguments, api=True) as vmm:
        await vmm.wait_until_served(SECONDS)
        yield vmm


def check_left_in_order(vmm: VmmProcess) -> None:
    """Check that an ended VMM has removed its files and had no unexpected error."""
    assert not (vmm.directory / "api.sock").exists()
    assert not (vmm.directory / "api.sock.lock").exists()
    assert b"Traceback" not in vmm.errors, vmm.transcript()
    assert vmm.events()[-1] == "vmm:shutdown"


def resources(vmm: VmmProcess) -> list[str]:
    """What a VMM has open, but for sockets: the last client's may be closing still."""
    return [name for name in vmm.open_descriptors() if not name.startswith("socket:")]


async def wait_for_event(vmm: VmmProcess, event: str) -> None:
    """Wait until a VMM has written an event, which is into a file."""
    with trio.fail_after(SECONDS):
        while event not in vmm.events():  # noqa: ASYNC110  the file has no event to wait on
            await trio.sleep(0.001)


async def run_to_its_end(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a VMM that is expected to end by itself."""
    with trio.fail_after(SECONDS):
        return await trio.run_process(
            [sys.executable, "-m", "vmm", *arguments],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
