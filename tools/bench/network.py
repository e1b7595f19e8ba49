"""Packets under load between a guest that polls and its host, beside QEMU's: time a packet.

Both have the same tap, in a network namespace of the bench's own. What the guest sends, the host
counts and drops; what it receives, and the ping, come from one program on a packet socket. Of what
it sends, at most as much is under way as both ends have room for, so nothing is lost.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tools.bench.errors import BenchError
from tools.bench.load_guest import Report, build_kernel, build_wire, cycles_per_us, step
from tools.bench.load_run import QEMU, VMM, Devices, run_load
from tools.bench.series import Claim, Contender, Result, Sample, race
from vmm.errors import HostError
from vmm.testing.namespace import network_namespace

TAP = "lan"
IPV6_SWITCH = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
"""A new interface with IPv6 tells its neighbours of itself."""
SIZES = (64, 1500)
FRAMES = 50_000
WARM_UP_FRAMES = 20_000
"""Until both of a VMM's threads have their cores."""
WINDOW = 256
"""Frames under way: what the receive queue takes."""
ANSWERED = 64
"""Frames that one answer of the guest's is for."""
PINGS = 2000
PATIENCE_US = 20_000_000
PACKETS_TARGET = 1 / 0.7
"""Times QEMU's time a packet: 0.7 of its rate."""

PING = "ping"
CLAIMS = (
    *(
        Claim(f"{VMM}: {size} B {way}", f"{QEMU}: {size} B {way}", target=PACKETS_TARGET)
        for way in ("out", "in")
        for size in SIZES
    ),
    Claim(f"{VMM}: {PING}", f"{QEMU}: {PING}"),
)


class Host(NamedTuple):
    """What stands at the host's end: the program on the wire, and the clock's rate."""

    wire: Path
    per_us: float

    def send(self, size: int) -> None:
        """Send all frames to the guest, at its pace."""
        self._run("send", size, FRAMES, WINDOW)

    def ping(self) -> float:
        """The median round trip of a frame, in microseconds."""
        return float(self._run("ping", SIZES[0], PINGS)) / 1000

    def _run(self, what: str, *numbers: int) -> str:
        command = (str(self.wire), TAP, what, *map(str, numbers))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(done.stderr.strip())
        return done.stdout


def measure(rounds: int) -> Result:
    """Send packets both ways through both VMMs, in turns."""
    with tempfile.TemporaryDirectory() as name, own_network():
        folder = Path(name)
        kernel = build_kernel(folder)
        host = Host(build_wire(folder), cycles_per_us())
        contenders = [
            Contender(vmm, partial(_load, vmm, kernel, host), vmm == VMM) for vmm in (VMM, QEMU)
        ]
        return race("network", "A packet, by size and way", contenders, CLAIMS, rounds)


@contextmanager
def own_network() -> Iterator[None]:
    """A network namespace with a tap that is up, and nobody who sends anything unasked.

    Raises: BenchError where that is not permitted.
    """
    try:
        with network_namespace():
            if IPV6_SWITCH.exists():
                IPV6_SWITCH.write_text("1")
            for command in (f"tuntap add {TAP} mode tap vnet_hdr", f"link set {TAP} up"):
                subprocess.run(["ip", *command.split()], check=True, capture_output=True)
            yield
    except HostError as error:
        raise BenchError(f"no network namespace can be made: {error}") from error
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"no tap can be made: {error}") from error


def _load(vmm: str, kernel: Path, host: Host) -> Iterator[Sample]:
    patience = int(PATIENCE_US * host.per_us)
    steps = [
        step("send", SIZES[0], WARM_UP_FRAMES),
        *(step("send", size, FRAMES) for size in SIZES),
        *(step("receive", FRAMES, ANSWERED, patience) for _ in SIZES),
        step("echo", PINGS, patience),
    ]
    out, in_ = iter(SIZES), iter(SIZES)
    before = frames_received(Path("/proc/thread-self/net/dev").read_text(), TAP)
    for report in run_load(vmm, kernel, steps, Devices(tap=TAP)):
        match report.name:
            case "send" if report.numbers["frames"] == FRAMES:
                yield _sample(f"{vmm}: {next(out)} B out", report, host.per_us)
            case "ready receive":
                host.send(size := next(in_))
            case "receive":
                yield _sample(f"{vmm}: {size} B in", report, host.per_us)
            case "ready echo":
                yield Sample(f"{vmm}: {PING}", "µs", host.ping())
    after = frames_received(Path("/proc/thread-self/net/dev").read_text(), TAP)
    due = WARM_UP_FRAMES + FRAMES * len(SIZES) + PINGS
    if after - before < due:
        raise BenchError(f"{vmm}: {after - before} frames came out of the guest, not {due}")


def _sample(name: str, report: Report, per_us: float) -> Sample:
    numbers = report.numbers
    if numbers["frames"] != FRAMES or numbers.get("wrong") or numbers.get("disordered"):
        raise BenchError(f"{name}: {numbers}, where {FRAMES} frames were due, whole and in order")
    return Sample(name, "µs", numbers["cycles"] / FRAMES / per_us)


def frames_received(table: str, interface: str) -> int:
    """How many frames an interface has received, out of /proc/net/dev. Raises: BenchError."""
    for line in table.splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            return int(counters.split()[1])
    raise BenchError(f"There is no interface {interface}")
