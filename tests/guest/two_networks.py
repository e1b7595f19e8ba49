"""Two networks on one host, for VMMs that are to be as on two.

Each is a network namespace, which has a tap of the same name in a bridge of the same name. A link
leads from each to the bridge of the test, which stands for the network between hosts; what carries
the memory goes over it, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.guest.debian import GATEWAY, tool
from tests.guest.moving import bridged
from vmm.testing.namespace import held_namespace

BRIDGE, TAP, UPLINK = "lan0", "guest0", "uplink0"
HOSTS = ("192.0.2.11", "192.0.2.12")
"""The addresses of the two hosts, in the guest's network."""


@asynccontextmanager
async def host_network(address: str, link: str) -> AsyncIterator[Path]:
    """The network of a host: a bridge with its address, a tap for a guest, a link to the lan."""
    with held_namespace() as network:
        inside = ("nsenter", f"--net={network}", "ip")
        far = ("peer", "name", UPLINK, "netns", network)
        await tool("ip", "link", "add", link, "type", "veth", *far)
        try:
            await tool("ip", "link", "set", link, "master", BRIDGE, "up")
            await tool(*inside, "link", "add", BRIDGE, "type", "bridge")
            await tool(*inside, "link", "set", UPLINK, "master", BRIDGE, "up")
            await tool(*inside, "tuntap", "add", TAP, "mode", "tap", "vnet_hdr")
            await tool(*inside, "link", "set", TAP, "master", BRIDGE, "up")
            await tool(*inside, "address", "add", f"{address}/24", "dev", BRIDGE)
            await tool(*inside, "link", "set", BRIDGE, "up")
            yield network
        finally:
            await tool("ip", "link", "delete", link)


@asynccontextmanager
async def two_networks() -> AsyncIterator[Sequence[Path]]:
    """The networks of the two hosts; the bridge has the guest's gateway for its address."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bridged(BRIDGE, GATEWAY))
        yield [
            await stack.enter_async_context(host_network(address, f"host{number}"))
            for number, address in enumerate(HOSTS)
        ]
