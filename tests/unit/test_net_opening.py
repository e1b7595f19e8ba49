"""From a network's configuration to its device and its tap, in a namespace of the test's own."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import combinations

import pytest
import trio

from vmm.config.net import NetConfig
from vmm.config.rate_limit import RateLimiterConfig, TokenBucket
from vmm.errors import ConfigError, HostError, UnsupportedError, VmmError
from vmm.machine.nets import open_net
from vmm.net.mac import bytes_of, is_group, random_mac
from vmm.net.tap import open_tap
from vmm.testing.namespace import network_namespace
from vmm.testing.virtio_pci import driven
from vmm.virtio import net as virtio_net
from vmm.virtio.net_spec import NetFeature

MASK = "255.255.255.0"
OFFLOADS = {"offload_csum": False, "offload_tso": False, "offload_ufo": False}


@pytest.fixture
def _namespace() -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(network_namespace())
            stack.enter_context(open_tap("probe", 1))
        except HostError as error:
            pytest.skip(f"taps cannot be made here: {error}")
        yield


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()} - {"lo", "probe"}


def shown(name: str) -> str:
    """What iproute2's ip says of an interface."""
    words = ["ip", "-o", "addr", "show", name, "up"], ["ip", "-o", "link", "show", name]
    run = [subprocess.run(each, check=True, capture_output=True, text=True) for each in words]
    return "".join(done.stdout for done in run)


def test_random_addresses_are_local_ones_of_single_stations() -> None:
    made = [random_mac() for _ in range(200)]
    assert len(set(made)) == 200
    for mac in made:
        assert len(bytes_of(mac)) == 6
        assert not is_group(bytes_of(mac))
        assert bytes_of(mac)[0] & 2


@pytest.mark.usefixtures("_namespace")
def test_network_of_an_empty_configuration_has_what_was_chosen_for_it() -> None:
    with open_net(NetConfig(), "_net0") as net:
        assert set(net.settled) == {"mac", "tap"}
        assert net.settled["tap"] == "vmtap0"
        assert net.resources == ({"MacAddress": net.settled["mac"]},)
        assert net.read_config(0, 6) == bytes_of(str(net.settled["mac"]))
        assert net.queue_sizes == (256, 256, 256)
        assert "UP" in shown("vmtap0")
        assert "inet " not in shown("vmtap0")
    assert interfaces() == set()


@pytest.mark.usefixtures("_namespace")
def test_network_is_opened_as_configured() -> None:
    config = NetConfig(
        tap="lan0",
        ip="10.9.8.1",
        mask=MASK,
        mac="02:00:00:00:00:02",
        host_mac="02:00:00:00:00:01",
        mtu=2000,
        num_queues=4,
        queue_size=64,
    )
    with open_net(config, "lan") as net:
        for part in ("10.9.8.1/24", "mtu 2000", "02:00:00:00:00:01"):
            assert part in shown("lan0")
        assert net.settled == {"mac": "02:00:00:00:00:02", "tap": "lan0"}
        assert net.queue_sizes == (64,) * 5
        assert net.features & NetFeature.MTU


@pytest.mark.usefixtures("_namespace")
@pytest.mark.parametrize("off", [(), ("offload_ufo",), ("offload_tso", "offload_ufo"), OFFLOADS])
def test_offloads_that_are_off_are_not_offered(off: tuple[str, ...]) -> None:
    config = NetConfig.model_validate(dict.fromkeys(off, False))
    with open_net(config, "lan") as net:
        for name, feature in (
            ("offload_csum", NetFeature.CSUM | NetFeature.CTRL_GUEST_OFFLOADS),
            ("offload_tso", NetFeature.HOST_TSO4 | NetFeature.GUEST_TSO6),
            ("offload_ufo", NetFeature.HOST_UFO | NetFeature.GUEST_UFO),
        ):
            assert net.features & feature == (0 if name in off else feature)


@pytest.mark.usefixtures("_namespace")
async def test_tap_takes_every_choice_of_offloads_that_a_driver_has() -> None:
    with open_net(NetConfig(), "_net0") as net:
        async with driven(net) as bench:
            *_, commands = await bench.driver.start()
            for count in range(len(virtio_net.OFFLOADS) + 1):
                for chosen in combinations(virtio_net.OFFLOADS, count):
                    commands.add([b"\5\0", sum(chosen).to_bytes(8, "little")], [1])
                    bench.driver.kick(2)
                    await trio.testing.wait_all_tasks_blocked()
                    assert [used.data for used in commands.collect()] == [b"\0"], chosen


@pytest.mark.usefixtures("_namespace")
def test_each_direction_of_each_pair_has_a_limit_of_its_own() -> None:
    bucket = TokenBucket(size=1000, refill_time=1000)
    config = NetConfig(num_queues=4, rate_limiter_config=RateLimiterConfig(ops=bucket))
    with open_net(config, "lan") as net:
        limits = [limit for pair in net._limits for limit in pair]
    assert len({id(limit) for limit in limits}) == 4
    assert None not in limits


@pytest.mark.usefixtures("_namespace")
def test_descriptors_are_used_as_they_come_and_no_name_is_written_back() -> None:
    with open_tap("given", 2) as made:
        config = NetConfig(fds=made.fds, num_queues=4, mac="02:00:00:00:00:02", mtu=1400)
        with open_net(config, "lan") as net:
            assert net.settled == {"mac": "02:00:00:00:00:02"}
            assert net.queue_sizes == (256,) * 5
        assert "mtu 1500" in shown("given")
        assert interfaces() == {"given"}


@pytest.mark.usefixtures("_namespace")
def test_address_beside_descriptors_is_left_out_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Clients of the original send one with every network; it asks nothing of a tap that is opened.
    with open_tap("given", 1) as made:
        before = shown("given")
        config = NetConfig(fds=made.fds, ip="192.168.249.1", mask=MASK)
        with open_net(config, "lan"):
            assert shown("given") == before
    assert "192.168.249.1 beside fds" in caplog.text


@pytest.mark.usefixtures("_namespace")
@pytest.mark.parametrize(
    ("config", "kind", "text"),
    [
        (NetConfig(vhost_user=True, vhost_socket="/s"), UnsupportedError, "vhost_user"),
        (NetConfig(mac="03:00:00:00:00:02"), ConfigError, "mac .*group of stations"),
        (NetConfig(host_mac="ff:ff:ff:ff:ff:ff"), ConfigError, "host_mac .*group of stations"),
        (NetConfig(ip="10.0.0.1", mask="255.0.255.0"), ConfigError, "no mask for the address"),
        (NetConfig(tap="a/b"), ConfigError, "name of an interface"),
        (NetConfig(tap="lo"), ConfigError, "not a tap"),
        (NetConfig(tap="probe"), HostError, "another program"),
        (NetConfig(mtu=65535), HostError, "SIOCSIFMTU"),
        (NetConfig(fds=(9,), tap="lan"), ConfigError, "tap .* beside fds"),
        (NetConfig(fds=(9,), host_mac="02:00:00:00:00:02"), ConfigError, "host_mac .* beside fds"),
        (NetConfig(fds=(999,)), ConfigError, "not open"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_network_that_cannot_be_opened_is_refused_and_leaves_nothing(
    config: NetConfig, kind: type[VmmError], text: str
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(kind, match=text), open_net(config, "lan"):
        pass
    assert interfaces() == set()
    assert set(os.listdir("/proc/self/fd")) == before
