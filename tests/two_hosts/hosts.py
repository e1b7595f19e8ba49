"""Two nested hosts with a cable between them: in each a bridge, a tap for a guest, and VMMs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from tests.two_hosts.program import Program
from tools.nested_host.cable import Plug, cable
from tools.nested_host.host import NestedHost
from tools.nested_host.machine import Machine
from tools.nested_host.shares import Shares
from vmm.testing.console import GuestConsole

CHECKOUT = Path(__file__).resolve().parents[2]
ADDRESSES = ("192.0.2.11", "192.0.2.12")
"""Of the two hosts, in the guest's network."""
TAP, SERIAL = "guest0", "/run/serial.sock"
MIGRATION_PORT = 7100
PROGRAM_S = 240.0
"""How long a program beside the VMM may take."""
MOVE_S = 240.0
ENDS_S = 60.0

# The cable's card, a tap for the guest and the host's own address, in one bridge.
NETWORK = (
    "modprobe virtio_net && until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done && "
    "ip link add lan0 type bridge && ip link set eth0 master lan0 up && "
    "ip tuntap add {tap} mode tap vnet_hdr && ip link set {tap} master lan0 up && "
    "ip address add {address}/24 dev lan0 && ip link set lan0 up"
)


class Host:
    """One of the two."""

    def __init__(self, nested: NestedHost, address: str) -> None:
        self.nested = nested
        self.address = address

    async def run(self, *words: str) -> str:
        """Run a program to its end, which must be a good one, and return its output."""
        async with Program.started(self.nested, *words) as program:
            return await program.end(PROGRAM_S)

    @asynccontextmanager
    async def console(self) -> AsyncIterator[GuestConsole]:
        """The serial console of the guest that is here."""
        await self.run("sh", "-c", f"until [ -S {SERIAL} ]; do sleep 0.1; done")
        async with Program.started(self.nested, "ncat", "-U", SERIAL) as stream:
            yield GuestConsole(stream)


class Vmm:
    """A VMM in a host, which writes its events to its standard output."""

    def __init__(self, host: Host, socket: str, program: Program) -> None:
        self.host = host
        self.program = program
        self._remote = ("python", "-m", "vmm.remote", "--api-socket", socket)

    @classmethod
    @asynccontextmanager
    async def started(cls, host: Host, name: str, *words: str) -> AsyncIterator[Vmm]:
        """Start one that answers under a name of its own."""
        socket = f"/run/{name}.sock"
        own = ("--api-socket", socket, "--event-monitor", "path=/dev/stdout")
        async with Program.started(host.nested, "python", "-m", "vmm", *own, *words) as program:
            yield cls(host, socket, program)

    async def request(self, *words: str) -> str:
        """Have it do what a request says, and return its answer."""
        return await self.host.run(*self._remote, *words)

    async def until_served(self) -> None:
        """Wait until it answers."""
        ping = " ".join((*self._remote, "ping"))
        await self.host.run("sh", "-c", f"until {ping} > /dev/null 2>&1; do sleep 0.2; done")


@asynccontextmanager
async def restored(built: Machine, results: Path, address: str, plug: Plug) -> AsyncIterator[Host]:
    """One host at its end of the cable."""
    shares = Shares(CHECKOUT, results)
    with tempfile.TemporaryDirectory(prefix="nested-host-") as run_dir:
        async with NestedHost.restore(built, shares, Path(run_dir), plug) as nested:
            host = Host(nested, address)
            await host.run("sh", "-c", NETWORK.format(tap=TAP, address=address))
            yield host


@asynccontextmanager
async def two_hosts(built: Machine, storage: Path) -> AsyncIterator[tuple[Host, Host]]:
    """Both hosts, which see the files in ``storage`` at the same path and can write to them."""
    with cable() as plugs:
        async with AsyncExitStack() as stack:
            near, far = [
                await stack.enter_async_context(restored(built, storage, address, plug))
                for address, plug in zip(ADDRESSES, plugs, strict=True)
            ]
            yield near, far


async def move(source: Vmm, target: Vmm) -> None:
    """Move the guest to a VMM that has none, which runs it, and see the one end that had it."""
    url = f"tcp:{target.host.address}:{MIGRATION_PORT}"
    options = f"destination_url={url},connections=4,timeout_s=10,timeout_strategy=Ignore"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(target.request, "receive-migration", url)
        await target.program.until('"migration-receive-ready"', MOVE_S)
        await source.request("send-migration", options)
    assert json.loads(await target.request("info"))["state"] == "Running"
    await source.program.end(ENDS_S)
