"""Disk and network of a stock Debian guest: under this VMM and under QEMU, in turns.

Debian is booted once under each VMM, from copies of one root disk, with a data disk and a tap each.
Then fio and iperf3 load the guests, never two at once: each load on one guest and at once on the
other, so that both meet the same disturbances. Where KVM cannot run Linux, all of it runs in a
nested host.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from tools.bench.debian_vmms import Machine, booted_qemu, booted_vmm
from tools.bench.errors import BenchError
from tools.bench.processes import ROOT
from tools.bench.report import as_text
from tools.bench.series import Claim, Result, Series, compare
from tools.images.initramfs import initramfs
from tools.images.kernels import kernel
from tools.images.rootdisk import root_disk
from tools.images.sparse import copy_sparse
from tools.nested_host.probe import kvm_runs_linux
from vmm.testing.console import GuestConsole

RELEASE = "6.12-cloud"
DATA_MIB = 256
FIO_S, RAMP_S, IPERF_S = 6, 1, 6
PATIENCE_S = 300.0
TERSE = {"read": ("7", "8"), "write": ("48", "49")}
"""Fields of fio's terse output, version 3: KiB a second, operations a second."""

VMM, QEMU = "vmm", "QEMU"
CONTENDERS = {VMM: booted_vmm, QEMU: booted_qemu}


class Load(NamedTuple):
    """One job of fio's on the data disk."""

    name: str
    way: str
    is_random: bool
    block: str
    depth: int

    @property
    def unit(self) -> str:
        """Of what is told: operations where they are small, else bytes."""
        return "/s" if self.is_random else "MiB/s"

    @property
    def command(self) -> str:
        """The shell command that prints KiB and operations a second."""
        pattern = f"{'rand' if self.is_random else ''}{self.way}"
        fields = ",".join(TERSE[self.way])
        return (
            f"fio --minimal --name=load --filename=/dev/vdb --rw={pattern} --bs={self.block} "
            f"--iodepth={self.depth} --ioengine=libaio --direct=1 --size={DATA_MIB}m --time_based "
            f"--runtime={FIO_S} --ramp_time={RAMP_S} | cut -d';' -f{fields}"
        )

    async def rate(self, machine: Machine, console: GuestConsole) -> float:
        """Operations or MiB a second, as fio counted them."""
        kib, operations = (await console.run(self.command, PATIENCE_S)).strip().split(";")
        return float(operations) if self.is_random else float(kib) / 1024


class Stream(NamedTuple):
    """One stream of iperf3's between host and guest."""

    name: str
    words: tuple[str, ...]
    unit: str = "Mb/s"

    async def rate(self, machine: Machine, console: GuestConsole) -> float:
        """Mbit a second that came in at the end that received."""
        words = ("--time", str(IPERF_S), "--omit", "1", "--json", *self.words)
        client = ("iperf3", "--client", machine.address, *words)
        report = json.loads(await trio.to_thread.run_sync(run, *client))
        if "error" in report:
            raise BenchError(f"{' '.join(client)} failed: {report['error']}")
        await trio.sleep(1)  # The server lets go of a client some time after that has left.
        return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6


LOADS = (
    Load("4 KiB random reads, depth 1", "read", True, "4k", 1),
    Load("4 KiB random reads, depth 32", "read", True, "4k", 32),
    Load("4 KiB random writes, depth 1", "write", True, "4k", 1),
    Load("4 KiB random writes, depth 32", "write", True, "4k", 32),
    Load("1 MiB reads in a row, depth 4", "read", False, "1m", 4),
    Load("1 MiB writes in a row, depth 4", "write", False, "1m", 4),
)
STREAMS = (Stream("TCP to the guest", ()), Stream("TCP from the guest", ("--reverse",)))


def main(rounds: int) -> int:
    """Measure, here or in a nested host, and print; the exit code."""
    images = make_images()
    answer = kvm_runs_linux()
    if not answer.runs:
        print(f"In a nested host, because {answer.reason}", file=sys.stderr)
        inside = ("python", "-m", "tools.bench", "guest", "--repeat", str(rounds))
        host = (sys.executable, "-m", "tools.nested_host", "run", "--", *inside)
        return subprocess.run(host, cwd=ROOT, check=False).returncode
    try:
        print(as_text(trio.run(measure, images, rounds)))
    except BaseExceptionGroup as group:
        failures = group.subgroup(BenchError)
        if failures is None:
            raise
        print(f"guest: {first_of(failures)}", file=sys.stderr)
        return 1
    return 0


def first_of(error: BaseException) -> BaseException:
    """The first error that is not a group."""
    return first_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


class Images(NamedTuple):
    """What is booted."""

    kernel: Path
    initramfs: Path
    root: Path


def make_images() -> Images:
    """Have what is booted in the cache, which a nested host cannot write to."""
    image = kernel(RELEASE)
    return Images(image.vmlinux, initramfs(image, "root"), root_disk())


async def measure(images: Images, rounds: int) -> Result:
    """Boot the guests, and measure each load on both in turns. Raises: BenchError."""
    values: dict[str, list[float]] = {}
    units: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        guests = []
        for number, (name, boot) in enumerate(CONTENDERS.items()):
            machine = stack.enter_context(machine_of(images, folder / name, number))
            console = await stack.enter_async_context(boot(machine, machine.root.parent))
            await console.run("iperf3 --server --daemon", PATIENCE_S)
            guests.append((name, machine, console))
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for load in (*LOADS, *STREAMS):
                for name, machine, console in guests[:: 1 if number % 2 == 0 else -1]:
                    each = f"{name}: {load.name}"
                    values.setdefault(each, []).append(await load.rate(machine, console))
                    units[each] = load.unit
    series = {each: Series(each, units[each], tuple(values[each])) for each in values}
    claims = [Claim(f"{VMM}: {load.name}", f"{QEMU}: {load.name}") for load in (*LOADS, *STREAMS)]
    title = f"Debian {RELEASE}, one vCPU, one queue"
    return Result("guest", title, tuple(series.values()), compare(series, claims))


@contextmanager
def machine_of(images: Images, folder: Path, number: int) -> Iterator[Machine]:
    """A machine with disks and a tap of its own. Raises: BenchError."""
    folder.mkdir()
    data = folder / "data.raw"
    data.write_bytes(bytes(range(256)) * (DATA_MIB << 12))
    root = copy_sparse(images.root, folder / "root.raw")
    machine = Machine(images.kernel, images.initramfs, root, data, number)
    run("ip", "tuntap", "add", machine.tap, "mode", "tap")
    try:
        run("ip", "address", "add", f"{machine.gateway}/28", "dev", machine.tap)
        run("ip", "link", "set", machine.tap, "up")
        yield machine
    finally:
        run("ip", "link", "delete", machine.tap)


def run(*command: str) -> str:
    """Run a program to its end and return what it prints. Raises: BenchError."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
