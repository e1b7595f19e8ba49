"""What every test with a stock Linux guest uses: the images, and a VM in each stage of its life."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel, kernel
from tools.nested_host.pytest_bridge import pytest_configure  # noqa: F401  a hook of pytest
from vmm.testing.console import GuestConsole
from vmm.testing.process import VmmProcess

QUICK = (
    "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests random.trust_cpu=on "
    "tsc=reliable no_timer_check nokaslr"
)
"""A command line that spares a slow host what does not matter to these tests."""

BOOT_S = 150.0
"""How long a guest may take to its shell; in a nested host it takes a tenth of it."""

KERNELS = ("6.1-cloud", "6.12-cloud")


def words(script: str | None = None, then: str | None = None) -> str:
    """The kernel's command line: a script for the guest to run, and what it does after."""
    line = QUICK
    if script is not None:
        line += f" run={base64.b64encode(script.encode()).decode()}"
    return line if then is None else f"{line} then={then}"


@pytest.fixture(scope="session")
def linux() -> Kernel:
    """The stock kernel that most tests boot."""
    return kernel("6.12-cloud")


@pytest.fixture(scope="session")
def minimal(linux: Kernel) -> Path:
    """The smallest initramfs for it."""
    return initramfs(linux, "minimal")


@pytest.fixture(scope="session")
def with_virtio(linux: Kernel) -> Path:
    """An initramfs with the virtio drivers."""
    return initramfs(linux, "virtio")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="vmm-") as directory:
        yield Path(directory)


class Guest:
    """A booted guest with a shell on its serial console, and the VMM that runs it."""

    def __init__(self, vmm: VmmProcess, console: GuestConsole) -> None:
        self.vmm = vmm
        self.console = console

    async def run(self, command: str, seconds: float = 60) -> str:
        """Run a command in the guest and return its output."""
        return await self.console.run(command, seconds)


@asynccontextmanager
async def booted(
    place: Path,
    image: Kernel,
    archive: Path,
    *arguments: str,
    virtio_console: str = "off",
    extra: str = "",
    pass_fds: Sequence[int] = (),
    network: Path | None = None,
) -> AsyncIterator[Guest]:
    """Boot a guest to a shell on a serial socket, with an API; leaving ends the VMM."""
    serial = place / "serial.sock"
    command = ["--kernel", str(image.vmlinux), "--initramfs", str(archive)]
    command += ["--cmdline", f"{words(then='shell')} {extra}".strip()]
    command += ["--serial", f"socket={serial}", "--console", virtio_console, *arguments]
    started = VmmProcess.start(place, *command, api=True, pass_fds=pass_fds, network=network)
    async with started as vmm:
        await vmm.wait_until_served(BOOT_S)
        async with GuestConsole.connect(serial) as console:
            await console.wait_for("GUEST-READY", BOOT_S)
            guest = Guest(vmm, console)
            await guest.run("stty -echo")
            yield guest


def machine(image: Kernel, archive: Path, cmdline: str, **sections: object) -> dict[str, object]:
    """A VmConfig for the API: a kernel, a small guest, no virtio console."""
    payload = {"kernel": str(image.vmlinux), "initramfs": str(archive), "cmdline": cmdline}
    return {"payload": payload, "console": {"mode": "Off"}, **sections}


@pytest.fixture(autouse=True)
def _short_temporary_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(os.environ.get("TMPDIR", "")) > 40:
        monkeypatch.delenv("TMPDIR")
