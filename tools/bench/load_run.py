"""A VMM with the load guest in it: how each of them is started, and the guest's lines as they come.

Both have one vCPU, 512 MiB, the debug port on stdout and the devices that are asked for.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.bench import qemu
from tools.bench.load_guest import DONE, Report, read_report, step
from tools.bench.processes import PATIENCE_S, Launch, launched, vmm

VMM = "vmm"
QEMU = "QEMU"

QEMU_MACHINE = "microvm,pcie=on,auto-kernel-cmdline=off"
"""Without firmware that would take its time; the devices are those of its other machines."""
QEMU_ECAM = 0xE000_0000

_MODERN = "disable-legacy=on"


class Devices(NamedTuple):
    """What the guest is given: paths of what each device is backed by, and a tap's name."""

    disk: Path | None = None
    is_direct: bool = False
    """Whether the disk's file is read and written past the host's page cache."""
    tap: str | None = None
    console: Path | None = None
    serial: Path | None = None


def vmm_command(kernel: Path, steps: Sequence[str], devices: Devices) -> tuple[str, ...]:
    """The VMM under test."""
    arguments = ["--kernel", str(kernel), "--cmdline", " ".join(steps), "--memory", "size=512M"]
    arguments += ["--debug-console", "tty"]
    arguments += ["--console", "off" if devices.console is None else f"file={devices.console}"]
    arguments += ["--serial", "off" if devices.serial is None else f"file={devices.serial}"]
    if devices.disk is not None:
        direct = "on" if devices.is_direct else "off"
        arguments += ["--disk", f"path={devices.disk},image_type=raw,direct={direct}"]
    if devices.tap is not None:
        arguments += ["--net", f"tap={devices.tap}"]
    return vmm(*arguments)


def qemu_command(kernel: Path, steps: Sequence[str], devices: Devices) -> tuple[str, ...]:
    """QEMU, with the disk on io_uring and a thread of its own, and the network without vhost."""
    program = " ".join((step("ecam", QEMU_ECAM), *steps))
    arguments = ["-kernel", str(kernel), "-append", program]
    if devices.disk is not None:
        direct = "on" if devices.is_direct else "off"
        drive = f"if=none,id=disk,file={devices.disk},format=raw,aio=io_uring,file.locking=off"
        arguments += ["-drive", f"{drive},cache.direct={direct}", "-object", "iothread,id=disk-io"]
        arguments += ["-device", f"virtio-blk-pci,drive=disk,iothread=disk-io,{_MODERN}"]
    if devices.tap is not None:
        arguments += ["-netdev", f"tap,id=net,ifname={devices.tap},script=no,downscript=no"]
        arguments += ["-device", f"virtio-net-pci,netdev=net,{_MODERN}"]
    if devices.console is not None:
        arguments += ["-chardev", f"file,id=console,path={devices.console}"]
        arguments += ["-device", f"virtio-serial-pci,{_MODERN}"]
        arguments += ["-device", "virtconsole,chardev=console"]
    if devices.serial is not None:
        arguments += ["-serial", f"file:{devices.serial}"]
    return qemu.command(*arguments, machine=QEMU_MACHINE)


COMMANDS: dict[str, Callable[[Path, Sequence[str], Devices], tuple[str, ...]]] = {
    VMM: vmm_command,
    QEMU: qemu_command,
}


def run_load(name: str, kernel: Path, steps: Sequence[str], devices: Devices) -> Iterator[Report]:
    """Have one of the VMMs run the guest, and give what the guest says, to its last line.

    Raises: BenchError when the guest fails, ends early, or is silent for too long.
    """
    with launched(*COMMANDS[name](kernel, steps, devices)) as launch:
        yield from reports(launch)


def reports(launch: Launch) -> Iterator[Report]:
    """What the guest of a running VMM says, to its last line; see ``run_load``."""
    for line in _lines(launch):
        if line == DONE:
            return
        yield read_report(line)
    raise launch.failure("ended before its guest did")


def _lines(launch: Launch) -> Iterator[str]:
    assert launch.process.stdout is not None
    stdout = launch.process.stdout.fileno()
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while selector.select(PATIENCE_S):
            got = os.read(stdout, 4096)
            if not got:
                return
            *whole, pending = (pending + got).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
    raise launch.failure(f"has a guest that was silent for {PATIENCE_S:.0f} s")


def idle_percent(launch: Launch, seconds: float) -> float:
    """How much of a core a VMM takes, whose guest has halted, over some time."""
    before, start = launch.cpu_ms, time.perf_counter()
    time.sleep(seconds)
    return (launch.cpu_ms - before) / (time.perf_counter() - start) / 10
