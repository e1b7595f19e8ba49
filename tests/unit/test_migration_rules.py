"""What the two requests may ask for, and what the refusals say."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.config.memory import MemoryConfig
from vmm.config.requests import ReceiveMigrationData, SendMigrationData
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError
from vmm.migration.address import TcpAddress, UnixAddress, parse_url
from vmm.migration.rules import RECEIVER_FILES, SENDER_FILES, check_receive, check_send

PRIVATE = MemoryConfig(size=64 << 20)
SHARED = MemoryConfig(size=64 << 20, shared=True)


def send(url: str, memory: MemoryConfig = PRIVATE, /, **fields: object) -> object:
    data = SendMigrationData.model_validate({"destination_url": url, **fields}, strict=False)
    return check_send(data, VmConfig(memory=memory))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("unix:/run/a.sock", UnixAddress("/run/a.sock")),
        ("unix:///run/a.sock", UnixAddress("/run/a.sock")),
        ("tcp:10.0.0.1:5000", TcpAddress("10.0.0.1", 5000)),
        ("tcp:host.example:1", TcpAddress("host.example", 1)),
        ("tcp:[fe80::1]:65535", TcpAddress("fe80::1", 65535)),
        ("tcp:[fe80::1%eth0]:1", TcpAddress("fe80::1%eth0", 1)),
    ],
)
def test_url_is_read(url: str, address: UnixAddress | TcpAddress) -> None:
    assert parse_url("url", url) == address
    assert parse_url("url", str(address)) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "unix",
        "unix:",
        "unix:/" + "a" * 107,
        "tcp:host",
        "tcp::5",
        "tcp:host:0",
        "tcp:host:65536",
        "tcp:host:five",
        "tcp:host:000080999999",
        "tcp:" + "a" * 64 + ":5",
        "tcp:.host:5",
        "tcp:h\u00f6st:5",
        "tcp:[fe80]:5",
        "tcp:fe80::1:5",
        "file:///a",
        "/run/a.sock",
    ],
)
def test_url_that_is_none_is_refused_with_its_field(url: str) -> None:
    with pytest.raises(ConfigError, match="receiver_url is "):
        check_receive(ReceiveMigrationData(receiver_url=url))


@pytest.mark.parametrize(
    ("url", "fields", "problem"),
    [
        ("unix:/a", {"connections": 2}, "connections is 2"),
        ("tcp:h:1", {"local": True}, "cannot carry"),
        ("unix:/a", {"preserve_source": True}, "it needs local"),
        ("unix:/a", {"local": True, "memory_mode": "Postcopy"}, "choose one"),
        ("tcp:h:1", {"connections": 2, "memory_mode": "Postcopy"}, "it must be 1"),
        ("unix:/a", {"local": True}, "not all of this VM's RAM has one"),
        ("unix:/a", {"tls_dir": "/etc"}, "needs no TLS"),
        ("tcp:h:1", {"tls_dir": "/nowhere"}, "has no readable ca-cert.pem"),
    ],
)
def test_request_against_a_rule_is_refused(
    url: str, fields: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        send(url, PRIVATE, **fields)


def test_network_of_the_destination_is_named_once() -> None:
    nets = ({"id": "lan", "num_fds": 1}, {"id": "lan", "num_fds": 1})
    data = {"receiver_url": "unix:/a", "net_fds": nets}
    with pytest.raises(ConfigError, match="net_fds: Identifier lan is not unique"):
        check_receive(ReceiveMigrationData.model_validate(data))


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        send("tcp:h:1", local=True, memory_mode="Postcopy", connections=4)

    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    "memory",
    [
        SHARED,
        MemoryConfig(size=64 << 20, hugepages=True),
        MemoryConfig.model_validate(
            {"size": 0, "zones": ({"id": "a", "size": 1 << 20, "shared": True},)}
        ),
    ],
)
def test_local_is_allowed_where_all_ram_has_a_descriptor(memory: MemoryConfig) -> None:
    assert send("unix:/a", memory, local=True, preserve_source=True) == UnixAddress("/a")


def test_local_is_refused_where_one_zone_has_no_descriptor() -> None:
    zones = ({"id": "a", "size": 1 << 20, "shared": True}, {"id": "b", "size": 1 << 20})
    memory = MemoryConfig.model_validate({"size": 0, "zones": zones})

    with pytest.raises(ConfigError, match="not all of this VM's RAM"):
        send("unix:/a", memory, local=True)


def test_tls_folder_needs_the_files_of_its_side(tmp_path: Path) -> None:
    for name in SENDER_FILES:
        (tmp_path / name).touch()

    assert send("tcp:h:1", tls_dir=str(tmp_path)) == TcpAddress("h", 1)
    with pytest.raises(ConfigError, match=RECEIVER_FILES[1]):
        check_receive(ReceiveMigrationData(receiver_url="tcp:h:1", tls_dir=str(tmp_path)))


@pytest.mark.parametrize(
    "memory",
    [
        {"size": 1 << 20, "zones": ({"id": "a", "size": 1 << 20, "shared": True},)},
        {"size": 1 << 20, "shared": True, "zones": ({"id": "a", "size": 1 << 20},)},
        {"size": 0, "zones": ({"id": "a", "size": 2 << 20, "file": "/a", "hugepages": True},)},
    ],
    ids=["beside a zone", "zone beside", "copy of a file"],
)
def test_local_needs_all_memory_to_be_where_others_can_map_it(memory: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="not all of this VM's RAM has one"):
        send("unix:/m", MemoryConfig.model_validate(memory, strict=False), local=True)
