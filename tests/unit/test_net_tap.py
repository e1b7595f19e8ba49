"""Taps and their interfaces, in a network namespace of the test's own."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from vmm.errors import ConfigError, HostError
from vmm.net import ioctls
from vmm.net.interface import Interface, address_of
from vmm.net.ioctls import TunFlag
from vmm.net.offload import HEADER_BYTES, Offload
from vmm.net.tap import adopt_tap, open_tap
from vmm.testing.namespace import network_namespace

ALL_OFFLOADS = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.TSO_ECN | Offload.UFO
MASK = "255.255.255.0"
MASK_6 = "ffff:ffff:ffff:ffff::"


@pytest.fixture(autouse=True)
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


def ip(*words: str) -> str:
    """Run iproute2's ip and return what it prints."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def header_bytes(fd: int) -> int:
    answer = bytearray(4)
    ioctls.call(fd, 0x800454D7, answer)
    return int.from_bytes(answer, "little")


def test_tap_without_a_name_gets_one_and_is_gone_when_closed() -> None:
    with open_tap(None, 1) as tap:
        assert tap.name == "vmtap0"
        assert interfaces() == {"vmtap0"}
        assert tap.interface.kind() == "tap"
        assert header_bytes(tap.fds[0]) == HEADER_BYTES
        assert not os.get_blocking(tap.fds[0])
        with open_tap(None, 1) as other:
            assert other.name == "vmtap1"
    assert interfaces() == set()


def test_tap_with_several_queues_has_a_descriptor_each_and_uses_as_many_as_told() -> None:
    with open_tap("many", 4) as tap:
        assert len(set(tap.fds)) == 4
        for count in (1, 4, 2, 2, 3):
            tap.use_queues(count)
            assert f"numqueues {count} numdisabled {4 - count}" in ip("-d", "link", "show", "many")


@pytest.mark.parametrize(("before", "wanted", "stuck"), [(1, 4, 2), (4, 1, 2)])
def test_change_of_queues_that_fails_half_way_can_be_made_again(
    monkeypatch: pytest.MonkeyPatch, before: int, wanted: int, stuck: int
) -> None:
    with open_tap("many", 4) as tap:
        tap.use_queues(before)
        refused = {tap.fds[stuck]}
        call = ioctls.call

        def failing(fd: int, number: int, argument: bytearray) -> None:
            if fd in refused:
                refused.remove(fd)
                raise OSError(errno.ENOMEM, "Cannot allocate memory")
            call(fd, number, argument)

        monkeypatch.setattr(ioctls, "call", failing)
        with pytest.raises(HostError, match="TUNSETQUEUE"):
            tap.use_queues(wanted)

        tap.use_queues(wanted)
        used = f"numqueues {wanted} numdisabled {4 - wanted}"
        assert used in ip("-d", "link", "show", "many")


def test_interface_is_set_up_as_told() -> None:
    with open_tap("lan", 1) as tap:
        tap.interface.set_mac(bytes.fromhex("02aabbccddee"))
        tap.interface.set_mtu(9000)
        tap.interface.set_address(address_of("10.9.8.7", MASK))
        tap.interface.set_address(address_of("fd00::7", MASK_6))
        tap.interface.bring_up()
        tap.set_offloads(ALL_OFFLOADS)

        shown = ip("-o", "addr", "show", "lan") + ip("-o", "link", "show", "lan")
    for part in ("10.9.8.7/24", "fd00::7/64", "02:aa:bb:cc:dd:ee", "mtu 9000", "UP"):
        assert part in shown


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("10.9.8.7", MASK), ("10.9.8.1", MASK)),
        (("fd00::7", MASK_6), ("fd00::1", MASK_6)),
    ],
)
def test_interface_with_an_address_keeps_it_and_a_warning_says_so(
    first: tuple[str, str], second: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with open_tap("lan", 1) as tap:
        tap.interface.bring_up()
        tap.interface.set_address(address_of(*first))
        tap.interface.set_address(address_of(*first))
        assert caplog.records == []

        tap.interface.set_address(address_of(*second))

        shown = ip("-o", "addr", "show", "lan")
        assert first[0] in shown
        assert second[0] not in shown
    assert "keeps its address" in caplog.text


@pytest.mark.parametrize(
    ("address", "mask"),
    [
        ("10.0.0.1", "255.0.255.0"),
        ("10.0.0.1", "ffff::"),
        ("fd00::1", "255.255.0.0"),
        ("fd00::1", "ffff:0:ffff::"),
    ],
)
def test_mask_that_is_none_for_its_address_is_refused(address: str, mask: str) -> None:
    with pytest.raises(ConfigError, match="no mask for the address"):
        address_of(address, mask)


@pytest.mark.parametrize(
    ("address", "mask", "expected"),
    [("10.0.0.1", "255.255.255.255", 32), ("10.0.0.1", "0.0.0.0", 0), ("fd00::1", "::", 0)],
)
def test_mask_at_its_limits_is_accepted(address: str, mask: str, expected: int) -> None:
    assert address_of(address, mask).network.prefixlen == expected


@pytest.mark.parametrize("name", ["", "x" * 16, "a b", "a/b", "a:b", ".", "..", "tap%d"])
def test_name_that_no_interface_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name of an interface"), open_tap(name, 1):
        pass


def test_name_as_long_as_can_be_is_accepted() -> None:
    with open_tap("x" * 15, 1) as tap:
        assert interfaces() == {tap.name}


def test_interface_that_is_no_tap_is_refused() -> None:
    with pytest.raises(ConfigError, match="lo, an interface of another kind"), open_tap("lo", 1):
        pass
    ip("tuntap", "add", "tun0", "mode", "tun")
    with pytest.raises(ConfigError, match="whose driver is tun"), open_tap("tun0", 1):
        pass


def test_tap_in_use_is_refused() -> None:
    with (
        open_tap("lan", 1),
        pytest.raises(HostError, match="another program") as caught,
        open_tap("lan", 1),
    ):
        pass
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize(
    ("made", "wanted", "text"),
    [
        ([], 2, "a tap with one queue, but num_queues is 4"),
        (["multi_queue"], 1, "a tap with several queues, but num_queues is 2"),
    ],
)
def test_tap_with_another_number_of_queues_is_refused(made: str, wanted: int, text: str) -> None:
    ip("tuntap", "add", "lan", "mode", "tap", *made)
    with pytest.raises(ConfigError, match=text), open_tap("lan", wanted):
        pass


def test_tap_that_was_there_stays_and_nothing_else_is_left_of_a_failure() -> None:
    ip("tuntap", "add", "lan", "mode", "tap")
    before = set(os.listdir("/proc/self/fd"))
    with open_tap("lan", 1):
        pass
    with pytest.raises(ConfigError), open_tap("lan", 2):
        pass
    assert interfaces() == {"lan"}
    assert set(os.listdir("/proc/self/fd")) == before


def test_address_that_no_interface_may_have_is_refused() -> None:
    with open_tap("lan", 1) as tap, pytest.raises(HostError, match="give another"):
        tap.interface.set_mac(bytes.fromhex("01aabbccddee"))


def test_mtu_beyond_the_interface_is_refused() -> None:
    with open_tap("lan", 1) as tap, pytest.raises(HostError, match="give another"):
        tap.interface.set_mtu(1 << 20)


def test_descriptors_of_a_tap_are_adopted_and_stay_open() -> None:
    with open_tap("given", 2) as made:
        with adopt_tap(made.fds) as tap:
            assert tap.name == "given"
            assert not set(tap.fds) & set(made.fds)
            assert header_bytes(tap.fds[1]) == HEADER_BYTES
            tap.use_queues(1)
        assert "numqueues 2 numdisabled 0" in ip("-d", "link", "show", "given")
    assert interfaces() == set()


def test_queues_that_a_killed_vmm_left_out_of_use_are_adopted_as_well() -> None:
    with open_tap("left", 3) as tap:
        tap.use_queues(1)  # And then it was killed, and its descriptors were copies of these.

        with adopt_tap(tap.fds) as adopted:
            assert adopted.name == "left"
            adopted.use_queues(1)
            adopted.use_queues(3)


def test_descriptor_that_blocked_does_not_any_more() -> None:
    with open_tap("given", 1) as made:
        os.set_blocking(made.fds[0], True)
        with adopt_tap(made.fds) as tap:
            assert not os.get_blocking(tap.fds[0])


def test_descriptors_that_are_no_queues_of_one_tap_are_refused() -> None:
    def refused(*fds: int) -> str:
        with pytest.raises(ConfigError) as caught, adopt_tap(fds):
            pass
        return str(caught.value)

    reader, writer = os.pipe()
    with open_tap("one", 1) as one, open_tap("two", 2) as two, open_tap("more", 2) as more:
        assert "no tap" in refused(reader)
        assert "no more than one" in refused(one.fds[0], one.fds[0])
        assert "queues of more and two" in refused(two.fds[0], more.fds[0])
        assert "twice" in refused(two.fds[0], two.fds[0])
    for fd in (reader, writer):
        os.close(fd)
    assert "not open" in refused(reader)


@pytest.mark.parametrize(
    "flags", [TunFlag.TAP | TunFlag.NO_PI, TunFlag.TUN | TunFlag.NO_PI | TunFlag.VNET_HDR]
)
def test_descriptor_of_another_kind_or_without_the_header_is_refused(flags: TunFlag) -> None:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        ioctls.call(fd, ioctls.TUNSETIFF, ioctls.request("other", flags.to_bytes(2, "little")))
        with pytest.raises(ConfigError, match="IFF_VNET_HDR"), adopt_tap([fd]):
            pass
    finally:
        os.close(fd)


def test_tap_that_was_deleted_is_the_hosts_error() -> None:
    with open_tap("lan", 1) as tap:
        ip("link", "del", "lan")
        with pytest.raises(HostError, match=r"deleted.*boot again"):
            tap.set_offloads(ALL_OFFLOADS)
        assert not Interface("lan").exists()
        assert fcntl.fcntl(tap.fds[0], fcntl.F_GETFD) >= 0
