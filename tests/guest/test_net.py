"""Networks in a stock guest: found, configured, carrying packets both ways, refused, gone."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, Guest, booted, machine, words
from tests.guest.debian import tool
from tools.images.kernels import Kernel
from vmm.net.interface import Interface, address_of
from vmm.net.tap import open_tap
from vmm.testing.process import VmmProcess

pytestmark = pytest.mark.guest

MIB = 1 << 20
HOST, GUEST = "192.168.77.1", "192.168.77.2"
HOST_6, GUEST_6 = "fd77::1", "fd77::2"
MASK_6 = "ffff:ffff:ffff:ffff::"
PORT = 5000
SECONDS = 60.0

REFUSED: tuple[tuple[dict[str, object], int, str], ...] = (
    ({"tap": "six0"}, 500, "another program has it open"),
    ({"tap": "lan0"}, 400, "a tap with several queues, but num_queues is 2"),
    ({"tap": "six0", "num_queues": 4}, 400, "a tap with one queue, but num_queues is 4"),
    ({"tap": "lo"}, 400, "an interface of another kind, not a tap"),
    ({"tap": "wide0", "mtu": 65535}, 500, "the interface does not take the value"),
    ({"tap": "wide0", "ip": "224.0.0.1", "mask": "255.0.0.0"}, 500, "SIOCSIFADDR"),
)
"""Networks beside those of the guest, and how a VM is refused that has one."""


@pytest.fixture
def data() -> bytes:
    """What is sent: nothing that repeats."""
    return random.Random(11).randbytes(8 * MIB)


def checksum(data: bytes) -> str:
    """As md5sum in the guest shows it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


async def set_up(guest: Guest, name: str, *addresses: str) -> None:
    """Have the guest's kernel use a network."""
    # An IPv6 address is of use at once.
    await guest.run(f"echo 0 > /proc/sys/net/ipv6/conf/{name}/accept_dad")
    for address in addresses:
        await guest.run(f"ip addr add {address} dev {name}")
    await guest.run(f"ip link set {name} up; ip link set lo up")


# The guest's end of a transfer is never a job in the background: busybox's shell may take the end
# of one, while it waits for the next line, for the end of its input.


async def send_to_guest(guest: Guest, address: str, data: bytes) -> str:
    """Send bytes over TCP; their checksum in the guest."""
    received: list[str] = []

    async def receive() -> None:
        command = f"nc -l -p {PORT} < /dev/null > /run/got; md5sum < /run/got; rm /run/got"
        received.append(await guest.run(command, SECONDS))

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            async with await connect(address) as stream:
                await stream.send_all(data)
    return received[0].split()[0]


async def connect(address: str) -> trio.SocketStream:
    """Connect to the guest as soon as it listens."""
    while True:
        try:
            return await trio.open_tcp_stream(address, PORT)
        except OSError:
            await trio.sleep(0.1)  # Nothing tells from outside that it listens.


async def receive_from_guest(guest: Guest, address: str, size: int) -> tuple[str, str]:
    """Have the guest send bytes over TCP: their checksum there, and here."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    got = hashlib.md5(usedforsecurity=False)

    async def receive() -> None:
        connection, _ = await listener.accept()
        with connection:
            while part := await connection.recv(MIB):
                got.update(part)

    with trio.socket.socket(kind, socket.SOCK_STREAM) as listener:
        await listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        sent = await guest.run(f"head -c {size} /dev/urandom > /run/sent; md5sum < /run/sent")
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await guest.run(f"nc {address} {port} < /run/sent > /dev/null; rm /run/sent")
    return sent.split()[0], got.hexdigest()


def ping(address: str) -> bool:
    """Whether an IPv4 address answers an echo request within a few seconds."""
    request = bytes((8, 0)) + (0xFFFF - 0x0800 - 0x0101).to_bytes(2, "big") + bytes((1, 1, 0, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(10)
        raw.sendto(request, (address, 0))
        while True:
            try:
                answer, (sender, _) = raw.recvfrom(2048)
            except TimeoutError:
                return False
            if sender == address and answer[20] == 0:
                return True


async def counters(guest: Guest) -> dict[str, dict[str, int]]:
    """What vm.counters shows."""
    reply = await guest.vmm.api("GET", "vm.counters")
    shown: dict[str, dict[str, int]] = reply.json
    return shown


async def test_network_is_as_configured_and_carries_packets_both_ways(
    place: Path, linux: Kernel, with_virtio: Path, data: bytes
) -> None:
    options = (
        f"tap=lan0,ip={HOST},mask=255.255.255.0,mac=02:77:00:00:00:02,host_mac=02:77:00:00:00:01,"
        "mtu=4000,num_queues=4,id=lan"
    )
    six = f"tap=six0,ip={HOST_6},mask={MASK_6}"
    async with booted(
        place, linux, with_virtio, "--cpus", "boot=2", "--net", options, six
    ) as guest:
        await set_up(guest, "eth0", f"{GUEST}/24")
        await set_up(guest, "eth1", f"{GUEST_6}/64")

        # The kernel settles the state of a link some time after it was set up.
        await guest.run("until grep -q up /sys/class/net/eth0/operstate; do sleep 0.2; done")
        shown = await guest.run("cd /sys/class/net/eth0; cat address mtu operstate; ls queues")
        assert shown.split() == [
            "02:77:00:00:00:02",
            "4000",
            "up",
            *("rx-0", "rx-1", "tx-0", "tx-1"),
        ]
        assert "3 packets received" in await guest.run(f"ping -c 3 -i 0.2 -s 3900 {HOST}")
        assert "3 packets received" in await guest.run(f"ping -6 -c 3 -i 0.2 {HOST_6}")
        assert await trio.to_thread.run_sync(ping, GUEST)
        for there, here in ((GUEST, HOST), (GUEST_6, HOST_6)):
            assert await send_to_guest(guest, there, data) == checksum(data)
            sent, got = await receive_from_guest(guest, here, len(data))
            assert sent == got

        info = await guest.vmm.info()
        assert info["device_tree"]["lan"]["resources"] == [{"MacAddress": "02:77:00:00:00:02"}]
        lan, other = info["config"]["net"]
        assert (lan["id"], other["id"], other["tap"]) == ("lan", "_net0", "six0")
        with tempfile.TemporaryDirectory(prefix="vmm-") as other:
            await check_refusals(Path(other), linux, with_virtio)
        count = await counters(guest)
        for name in ("lan", "_net0"):
            assert set(count[name]) == {"rx_bytes", "rx_frames", "tx_bytes", "tx_frames"}
            assert count[name]["rx_bytes"] > len(data) < count[name]["tx_bytes"]
            assert count[name]["rx_frames"] > 0 < count[name]["tx_frames"]
        await check_lost_tap(guest)
    assert not Interface("lan0").exists()
    assert not Interface("six0").exists()


async def check_refusals(place: Path, linux: Kernel, with_virtio: Path) -> None:
    """A VM whose tap is busy, too narrow, or none does not boot and says why; its VMM goes on."""
    async with VmmProcess.start(place, api=True) as vmm:
        await vmm.wait_until_served(BOOT_S)
        for net, status, said in REFUSED:
            config = machine(linux, with_virtio, words(), cpus={"boot_vcpus": 2, "max_vcpus": 2})
            await vmm.put("vm.create", {**config, "net": [net]})
            reply = await vmm.api("PUT", "vm.boot")
            assert (reply.status, said in reply.body.decode()) == (status, True), reply.body
            await vmm.put("vm.delete")
    assert not Interface("wide0").exists()


async def check_lost_tap(guest: Guest) -> None:
    """A tap that is deleted under a running guest costs it that network and nothing else."""
    await tool("ip", "link", "delete", "six0")
    # The driver's next packet finds the device broken, if the device has not found it before.
    await guest.run(f"ping -6 -c 1 -W 1 {HOST_6} || true")
    with trio.fail_after(SECONDS):
        while "virtio-device:needs-reset" not in guest.vmm.events():  # noqa: ASYNC110
            await trio.sleep(0.1)  # The file of events cannot be waited on.
    assert b"six0" in guest.vmm.errors
    assert "3 packets received" in await guest.run(f"ping -c 3 -i 0.2 {HOST}")
    assert (await guest.vmm.info())["state"] == "Running"


async def test_network_of_no_name_keeps_tap_and_mac_over_a_reboot(
    place: Path, linux: Kernel, with_virtio: Path, data: bytes
) -> None:
    plain = "offload_tso=off,offload_ufo=off,offload_csum=off"
    options = ("--net", f"ip={HOST},mask=255.255.255.0,{plain}")
    async with booted(place, linux, with_virtio, *options) as guest:
        (before,) = (await guest.vmm.info())["config"]["net"]
        ready = len(guest.console.text)
        await guest.console.type("reboot -f\n")
        await guest.console.wait_for("GUEST-READY", BOOT_S, after=ready)
        await guest.run("stty -echo")
        (after,) = (await guest.vmm.info())["config"]["net"]
        assert before == after
        assert (await guest.run("cat /sys/class/net/eth0/address")).strip() == after["mac"]
        assert Interface(after["tap"]).kind() == "tap"

        await set_up(guest, "eth0", f"{GUEST}/24")
        sent, got = await receive_from_guest(guest, HOST, MIB)
        assert sent == got
        assert await send_to_guest(guest, GUEST, data[:MIB]) == checksum(data[:MIB])
    assert not Interface(after["tap"]).exists()


async def test_network_over_descriptors_leaves_the_tap_to_who_made_it(
    place: Path, linux: Kernel, with_virtio: Path, data: bytes
) -> None:
    with ExitStack() as stack:
        tap = stack.enter_context(open_tap("given0", 1))
        tap.interface.set_address(address_of(HOST, "255.255.255.0"))
        tap.interface.bring_up()
        (fd,) = tap.fds
        os.set_inheritable(fd, True)
        async with booted(
            place, linux, with_virtio, "--net", f"fd=[{fd}],mac=02:77:00:00:00:03", pass_fds=(fd,)
        ) as guest:
            await set_up(guest, "eth0", f"{GUEST}/24")
            assert await send_to_guest(guest, GUEST, data) == checksum(data)
            address = await guest.run("cat /sys/class/net/eth0/address")
            assert address.strip() == "02:77:00:00:00:03"
        assert Interface("given0").exists()
