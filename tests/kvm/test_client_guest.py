"""A real VMM, driven by each client and by ``vmm-remote``; and the examples of their pages."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import SECONDS, machine, running, short_folder
from tests.unit.documents import ROOT, arguments_of, blocks, commands
from vmm.client import ApiError, AsyncClient, Client, ConnectError
from vmm.config.document import parse_object
from vmm.config.info import VmState
from vmm.config.vm import VmConfig
from vmm.testing.process import VmmProcess

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

Live = Callable[[str, VmConfig], Awaitable[list[object]]]
SOCKET, KERNEL, SERIAL, CONFIG = "/run/vm.sock", "/boot/vmlinuz", "/tmp/serial.log", "vm.json"
"""What the pages' examples call the files of the reader's own."""

LIFE = [
    VmState.CREATED,
    VmState.RUNNING,
    405,
    VmState.PAUSED,
    VmState.RUNNING,
    ["_disk0"],
    VmState.RUNNING,
    VmState.CREATED,
    404,
]
"""What a VM's life looks like from outside, statuses of refusals included."""


def socket_of(vmm: VmmProcess) -> str:
    return str(vmm.directory / "api.sock")


async def live(vm: AsyncClient, config: VmConfig) -> list[object]:
    """Lead a VM through its life."""
    seen: list[object] = []
    await vm.create(config)
    seen.append((await vm.info()).state)
    await vm.boot()
    seen.append((await vm.info()).state)
    try:
        await vm.resume()
    except ApiError as error:
        seen.append(error.status)
    await vm.pause()
    seen.append((await vm.info()).state)
    await vm.resume()
    seen.append((await vm.info()).state)
    seen.append(list(await vm.counters()))
    await vm.reboot()
    seen.append((await vm.info()).state)
    await vm.shutdown()
    seen.append((await vm.info()).state)
    await vm.delete()
    try:
        await vm.info()
    except ApiError as error:
        seen.append(error.status)
    return seen


class Waiting:
    """A blocking client with the methods of the other one, each in a thread."""

    def __init__(self, path: str) -> None:
        self._client = Client(path, timeout=SECONDS)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        return partial(trio.to_thread.run_sync, getattr(self._client, name))


async def by_blocking(path: str, config: VmConfig) -> list[object]:
    return await live(Waiting(path), config)  # type: ignore[arg-type]


async def by_trio(path: str, config: VmConfig) -> list[object]:
    return await live(AsyncClient(path), config)


async def by_asyncio(path: str, config: VmConfig) -> list[object]:
    def run() -> list[object]:
        return asyncio.run(live(AsyncClient(path), config))

    return await trio.to_thread.run_sync(run)


@pytest.mark.parametrize("client", [by_blocking, by_trio, by_asyncio], ids=lambda f: f.__name__[3:])
async def test_client_leads_a_vm_through_its_life(client: Live, place: Path) -> None:
    disk = place / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    disks = [{"path": str(disk), "image_type": "Raw"}]
    config = parse_object(VmConfig, machine(write_kernel(place, programs.SPIN), disks=disks))

    async with running(place) as vmm:
        seen = await client(socket_of(vmm), config)

    assert seen == LIFE


async def test_shutdown_is_answered_and_then_nobody_listens(place: Path) -> None:
    async with running(place) as vmm:
        client = vmm.client
        about = await client.ping()
        await client.shutdown_vmm()

        assert await vmm.wait(SECONDS) == 0
        assert about.pid == vmm.process.pid
        with pytest.raises(ConnectError, match="start a VMM with --api-socket"):
            await client.ping()


async def remote(path: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``vmm-remote`` as a user does."""
    with trio.fail_after(SECONDS):
        return await trio.run_process(
            [sys.executable, "-m", "vmm.remote", "--api-socket", path, *words],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


async def test_remote_leads_a_vm_through_its_life(place: Path) -> None:
    path = place / CONFIG
    path.write_text(json.dumps(machine(write_kernel(place, programs.SPIN))))
    states = []

    async with running(place) as vmm:
        for words in (["create", str(path)], ["boot"], ["pause"], ["resume"], ["shutdown"]):
            done = await remote(socket_of(vmm), *words)
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), words
            states.append(json.loads((await remote(socket_of(vmm), "info")).stdout)["state"])
        refused = await remote(socket_of(vmm), "--json", "pause")
        broken = await remote(socket_of(vmm), "resize-disk", "--disk", "none", "--size", "1G")
        await remote(socket_of(vmm), "delete")
        missing = await remote(socket_of(vmm), "info")
        await remote(socket_of(vmm), "shutdown-vmm")
        assert await vmm.wait(SECONDS) == 0
        gone = await remote(socket_of(vmm), "ping")

    assert states == ["Created", "Running", "Paused", "Running", "Created"]
    assert refused.returncode == 1
    assert json.loads(refused.stderr)["status"] == 405
    assert broken.returncode == 1
    assert missing.stderr.splitlines()[:3] == [
        b"Error: vmm-remote exited with the following chain of errors:",
        b"  0: http client error",
        b"  1: Server responded with NotFound",
    ]
    assert (gone.returncode, gone.stdout) == (1, b"")
    assert b"start a VMM with --api-socket" in gone.stderr


def replaced(text: str, vmm: VmmProcess, kernel: Path) -> str:
    """Put this test's files into an example."""
    meant = {
        SOCKET: socket_of(vmm),
        KERNEL: str(kernel),
        SERIAL: str(vmm.directory / "serial.log"),
        CONFIG: str(vmm.directory / CONFIG),
    }
    for name, value in meant.items():
        text = text.replace(name, value)
    return text


async def test_programs_of_the_client_page_run(place: Path) -> None:
    kernel = write_kernel(place, programs.SPIN)
    shown = [block for block in blocks(ROOT / "docs" / "client.md") if "import" in block]
    outputs = []

    async with running(place) as vmm:
        for block in shown:
            with trio.fail_after(SECONDS):
                done = await trio.run_process(
                    [sys.executable, "-W", "error", "-c", replaced(block, vmm, kernel)],
                    capture_stdout=True,
                )
            outputs.append(done.stdout.decode())

    first, second, third = outputs
    assert first.startswith("Running {")
    assert second == ""
    assert third.splitlines()[0] == "404"


async def test_commands_of_the_remote_page_run(place: Path) -> None:
    kernel = write_kernel(place, programs.SPIN)
    (place / CONFIG).write_text(json.dumps(machine(kernel)))
    shown: Sequence[list[str]] = [
        words
        for command in commands(ROOT / "docs" / "remote.md")
        if (words := arguments_of(command, "vmm-remote")) is not None
    ]
    ending = [words for words in shown if "shutdown-vmm" in words]
    live_views = [words for words in shown if "top" in words]

    async with running(place) as vmm:
        ordered = [words for words in shown if words not in (*ending, *live_views)]
        at = next(index for index, words in enumerate(ordered) if "boot" in words) + 1
        for words in (*ordered[:at], *live_views, *ordered[at:], *ending):
            given = [replaced(word, vmm, kernel) for word in words]
            with trio.fail_after(SECONDS):
                done = await trio.run_process(
                    [sys.executable, "-m", "vmm.remote", *given],
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
            assert (done.returncode, done.stderr) == (0, b""), words
        assert await vmm.wait(SECONDS) == 0

    assert len(shown) >= 12
