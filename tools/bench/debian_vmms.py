"""The VMMs that boot a Debian guest for the bench: the same kernel, disks, tap, memory and vCPU.

Both serve their disk by io_uring through the page cache and their network without help of the
host's kernel (vhost), each has one queue, and QEMU's disk has a thread of its own.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from tools.bench.errors import BenchError
from tools.bench.qemu import PROGRAM
from vmm.testing.console import GuestConsole
from vmm.testing.process import VmmProcess

MEMORY_MIB = 512
BOOT_S = 300.0
WORDS = (
    "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests random.trust_cpu=on "
    "tsc=reliable no_timer_check nokaslr then=shell"
)


class Machine(NamedTuple):
    """What is booted, with disks and a tap of its own; ``tap`` is ``number`` of the bench's."""

    kernel: Path
    initramfs: Path
    root: Path
    data: Path
    number: int

    @property
    def tap(self) -> str:
        """The host's end of the network; it is there."""
        return f"bench{self.number}"

    @property
    def gateway(self) -> str:
        """The host's address on it."""
        return f"192.0.2.{16 * self.number + 1}"

    @property
    def address(self) -> str:
        """The guest's."""
        return f"192.0.2.{16 * self.number + 2}"

    @property
    def mac(self) -> str:
        """The guest's hardware address."""
        return f"02:00:00:00:00:{self.number:02x}"

    @property
    def cmdline(self) -> str:
        """The kernel's command line: a network from the boot on, then a shell."""
        return f"{WORDS} ip={self.address}::{self.gateway}:255.255.255.240:::off"


@asynccontextmanager
async def booted_vmm(machine: Machine, folder: Path) -> AsyncIterator[GuestConsole]:
    """The guest's shell, under this VMM; leaving powers the guest off."""
    serial = folder / "serial.sock"
    disks = [f"path={path},image_type=raw" for path in (machine.root, machine.data)]
    options = ["--kernel", str(machine.kernel), "--initramfs", str(machine.initramfs)]
    options += ["--cmdline", machine.cmdline, "--memory", f"size={MEMORY_MIB}M", "--cpus", "boot=1"]
    options += ["--disk", *disks, "--net", f"tap={machine.tap},mac={machine.mac}"]
    options += ["--serial", f"socket={serial}", "--console", "off"]
    async with VmmProcess.start(folder, *options) as vmm:
        async with shell_on(serial) as console:
            yield console
        await vmm.wait(BOOT_S)


@asynccontextmanager
async def booted_qemu(machine: Machine, folder: Path) -> AsyncIterator[GuestConsole]:
    """The guest's shell, under QEMU; leaving powers the guest off."""
    serial = folder / "qemu.sock"
    command = [PROGRAM, "-machine", "q35,accel=kvm", "-cpu", "host,arch-capabilities=off"]
    command += ["-m", str(MEMORY_MIB), "-smp", "1", "-nodefaults", "-no-user-config", "-no-reboot"]
    command += ["-display", "none", "-kernel", str(machine.kernel), "-append", machine.cmdline]
    command += ["-initrd", str(machine.initramfs), "-object", "iothread,id=disks"]
    for number, path in enumerate((machine.root, machine.data)):
        drive = f"if=none,id=d{number},file={path},format=raw,aio=io_uring,cache=writeback"
        device = f"virtio-blk-pci,drive=d{number},iothread=disks,num-queues=1"
        command += ["-drive", drive, "-device", device]
    command += ["-netdev", f"tap,id=n,ifname={machine.tap},script=no,downscript=no,vhost=off"]
    command += ["-device", f"virtio-net-pci,netdev=n,mac={machine.mac},romfile="]
    command += ["-serial", f"unix:{serial},server=on,wait=on"]
    try:
        async with trio.open_nursery() as nursery:
            process = await nursery.start(partial(trio.run_process, command, stdin=b""))
            async with shell_on(serial) as console:
                yield console
            with trio.fail_after(BOOT_S):
                await process.wait()
    except* subprocess.CalledProcessError as group:
        raise BenchError(f"{PROGRAM} failed; its words are above") from group


@asynccontextmanager
async def shell_on(serial: Path) -> AsyncIterator[GuestConsole]:
    """Wait for the guest's shell on a serial port; leaving has the guest power off."""
    with trio.fail_after(BOOT_S):
        while True:
            try:
                stream = await trio.open_unix_socket(str(serial))
                break
            except OSError:
                await trio.sleep(0.05)  # Nothing tells that the VMM listens.
    async with stream:
        console = GuestConsole(stream)
        await console.wait_for("GUEST-READY", BOOT_S)
        await console.run("stty -echo", BOOT_S)
        yield console
        await console.type("systemctl start --no-block poweroff.target\n")
        await console.wait_for("GUEST-POWEROFF", BOOT_S)
