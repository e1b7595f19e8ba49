"""Disk and network of a stock Debian guest: under this VMM and under QEMU, in turns.

Each round boots Debian from a fresh copy of one root disk, with one data disk and one tap, under
each VMM, and has fio and iperf3 load them. Where KVM cannot run Linux, all of it runs in a nested
host.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from tools.bench.debian_vmms import ADDRESS, GATEWAY, TAP, Machine, booted_qemu, booted_vmm
from tools.bench.errors import BenchError
from tools.bench.processes import ROOT
from tools.bench.report import as_text
from tools.bench.series import Claim, Result, Sample, Series, compare
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


LOADS = (
    Load("4 KiB random reads, depth 1", "read", True, "4k", 1),
    Load("4 KiB random reads, depth 32", "read", True, "4k", 32),
    Load("4 KiB random writes, depth 1", "write", True, "4k", 1),
    Load("4 KiB random writes, depth 32", "write", True, "4k", 32),
    Load("1 MiB reads in a row, depth 4", "read", False, "1m", 4),
    Load("1 MiB writes in a row, depth 4", "write", False, "1m", 4),
)
STREAMS = {"TCP to the guest": (), "TCP from the guest": ("--reverse",)}


def main(rounds: int) -> int:
    """Measure, here or in a nested host, and print; the exit code."""
    machine = make_machine()
    answer = kvm_runs_linux()
    if not answer.runs:
        print(f"In a nested host, because {answer.reason}", file=sys.stderr)
        inside = ("python", "-m", "tools.bench", "guest", "--repeat", str(rounds))
        host = (sys.executable, "-m", "tools.nested_host", "run", "--", *inside)
        return subprocess.run(host, cwd=ROOT, check=False).returncode
    try:
        print(as_text(trio.run(measure, machine, rounds)))
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


def make_machine() -> Machine:
    """Have what is booted in the cache, which a nested host cannot write to."""
    image = kernel(RELEASE)
    return Machine(image.vmlinux, initramfs(image, "root"), root_disk())


async def measure(machine: Machine, rounds: int) -> Result:
    """Measure all contenders in each round, in an order that turns. Raises: BenchError."""
    values: dict[str, list[float]] = {}
    units: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name, persistent_tap():
        folder = Path(name)
        data = folder / "data.raw"
        data.write_bytes(bytes(range(256)) * (DATA_MIB << 12))
        for number in range(rounds):
            for contender in list(CONTENDERS)[:: 1 if number % 2 == 0 else -1]:
                print(f"round {number + 1} of {rounds}: {contender}", file=sys.stderr)
                root = copy_sparse(machine.root, folder / "root.raw")
                copied = machine._replace(root=root, data=data)
                for sample in await samples(contender, copied, folder):
                    values.setdefault(sample.name, []).append(sample.value)
                    units[sample.name] = sample.unit
    series = {each: Series(each, units[each], tuple(values[each])) for each in values}
    names = [*(load.name for load in LOADS), *STREAMS]
    claims = [Claim(f"{VMM}: {each}", f"{QEMU}: {each}") for each in names]
    title = f"Debian {RELEASE}, one vCPU, one queue"
    return Result("guest", title, tuple(series.values()), compare(series, claims))


@contextmanager
def persistent_tap() -> Iterator[None]:
    """The tap that both use; it has the host's address. Raises: BenchError."""
    run("ip", "tuntap", "add", TAP, "mode", "tap")
    try:
        run("ip", "address", "add", f"{GATEWAY}/24", "dev", TAP)
        run("ip", "link", "set", TAP, "up")
        yield
    finally:
        run("ip", "link", "delete", TAP)


def run(*command: str) -> str:
    """Run a program to its end and return what it prints. Raises: BenchError."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


async def samples(contender: str, machine: Machine, folder: Path) -> list[Sample]:
    """Boot the guest under one VMM, load it, and power it off."""
    found = []
    async with CONTENDERS[contender](machine, folder) as console:
        for load in LOADS:
            found.append(
                Sample(f"{contender}: {load.name}", load.unit, await disk_rate(console, load))
            )
        await console.run("iperf3 --server --daemon", PATIENCE_S)
        for name, words in STREAMS.items():
            rate = await trio.to_thread.run_sync(network_rate, words)
            found.append(Sample(f"{contender}: {name}", "Mb/s", rate))
    return found


async def disk_rate(console: GuestConsole, load: Load) -> float:
    """Operations or MiB a second, as fio counted them."""
    kib, operations = (await console.run(load.command, PATIENCE_S)).strip().split(";")
    return float(operations) if load.is_random else float(kib) / 1024


def network_rate(words: tuple[str, ...]) -> float:
    """Mbit a second that came in at the end that received."""
    client = ("iperf3", "--client", ADDRESS, "--time", str(IPERF_S), "--omit", "1", "--json")
    report = json.loads(run(*client, *words))
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6
