"""The serial port of a stock guest, in each of its modes."""

from __future__ import annotations

import os
import pty
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, machine, words
from tools.images.kernels import Kernel
from vmm.testing.console import GuestConsole
from vmm.testing.process import VmmProcess

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("mode", ["off", "null"])
async def test_serial_without_output_lets_the_guest_run_to_its_end(
    place: Path, linux: Kernel, minimal: Path, mode: str
) -> None:
    arguments = ["--kernel", str(linux.vmlinux), "--initramfs", str(minimal)]
    arguments += ["--cmdline", words("true"), "--serial", mode, "--console", "off"]

    async with VmmProcess.start(place, *arguments) as vmm:
        assert await vmm.wait(BOOT_S) == 0, vmm.transcript()

    assert vmm.output == b""


async def test_serial_file_holds_all_that_the_guest_printed(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    log = place / "serial.log"
    arguments = ["--kernel", str(linux.vmlinux), "--initramfs", str(minimal)]
    arguments += ["--cmdline", words("seq 3000"), "--serial", f"file={log}", "--console", "off"]

    async with VmmProcess.start(place, *arguments) as vmm:
        assert await vmm.wait(BOOT_S) == 0, vmm.transcript()

    text = log.read_text().replace("\r", "")
    run = text.split("GUEST-RUN-BEGIN\n")[1].split("GUEST-RUN-END")[0]
    assert [int(line) for line in run.split()] == list(range(1, 3001))
    assert text.rstrip().endswith("GUEST-POWEROFF") or "reboot: Power down" in text


async def test_serial_pty_is_named_in_vm_info_and_carries_a_shell(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    config = machine(linux, minimal, words(then="shell"), serial={"mode": "Pty"})
    async with VmmProcess.start(place, api=True) as vmm:
        await vmm.wait_until_served(BOOT_S)
        await vmm.put("vm.create", config)
        path = (await vmm.info())["config"]["serial"]["file"]
        assert path.startswith("/dev/pts/")
        await vmm.put("vm.boot")

        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            await expect(fd, b"GUEST-READY", BOOT_S)
            os.write(fd, b"echo $((6*7))-answer\n")
            await expect(fd, b"42-answer", 60)
        finally:
            os.close(fd)


async def test_serial_tty_takes_keys_and_gives_the_terminal_back(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    import sys
    import termios

    outer, inner = pty.openpty()
    os.set_blocking(outer, False)
    before = termios.tcgetattr(inner)
    command = [sys.executable, "-m", "vmm", "--kernel", str(linux.vmlinux)]
    command += ["--initramfs", str(minimal), "--cmdline", words(then="shell")]
    command += ["--serial", "tty", "--console", "off"]
    process = await trio.lowlevel.open_process(
        ["setsid", "--ctty", "--wait", *command], stdin=inner, stdout=inner, stderr=inner
    )
    try:
        await expect(outer, b"GUEST-READY", BOOT_S)
        os.write(outer, b"echo $((6*7))-answer\r")
        await expect(outer, b"42-answer", 60)
        os.write(outer, b"poweroff -f\r")
        with trio.fail_after(60):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert termios.tcgetattr(inner) == before
    os.close(outer)
    os.close(inner)


async def test_serial_socket_replays_what_came_before_and_takes_a_second_client(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    serial = place / "serial.sock"
    config = machine(
        linux, minimal, words(then="shell"), serial={"mode": "Socket", "socket": str(serial)}
    )
    async with VmmProcess.start(place, api=True) as vmm:
        await vmm.wait_until_served(BOOT_S)
        await vmm.put("vm.create", config)
        await vmm.put("vm.boot")
        async with GuestConsole.connect(serial) as first:
            await first.wait_for("GUEST-READY", BOOT_S)
            assert await first.run("echo one") == "one\n"
        async with GuestConsole.connect(serial) as second:
            assert await second.run("echo two") == "two\n"


async def expect(fd: int, text: bytes, seconds: float) -> bytes:
    """Read from a terminal until a text comes. Raises: AssertionError with what came instead."""
    seen = b""
    with trio.move_on_after(seconds):
        while text not in seen:
            await trio.lowlevel.wait_readable(fd)
            try:
                seen += os.read(fd, 65536)
            except OSError as error:
                raise AssertionError(f"The terminal ended:\n{seen.decode()}") from error
        return seen
    raise AssertionError(f"{text!r} did not come:\n{seen.decode()}")
