"""Where an option's keys depart from its fields: consoles, rate limits, renamed and old keys."""

from __future__ import annotations

import logging

import pytest

from tests.unit.test_config_syntax import refusal
from vmm.config.console import ConsoleConfig, ConsoleMode, DebugConsoleConfig, SerialConfig
from vmm.config.device import DeviceConfig
from vmm.config.disk import DiskConfig, VirtQueueAffinity
from vmm.config.fs import FsConfig
from vmm.config.generic_vhost_user import GenericVhostUserConfig
from vmm.config.memory import MemoryConfig, MemoryZoneConfig
from vmm.config.net import NetConfig
from vmm.config.platform import PlatformConfig
from vmm.config.rate_limit import RateLimiterConfig, RateLimitGroupConfig, TokenBucket
from vmm.config.rng import RngConfig
from vmm.config.syntax import parse_option
from vmm.config.units import MIB
from vmm.errors import ConfigError


def test_parse_debug_port_needs_hexadecimal_with_0x() -> None:
    assert parse_option(DebugConsoleConfig, "tty,iobase=0x402").iobase == 0x402
    assert parse_option(DebugConsoleConfig, "tty").iobase == 0xE9
    for text in ("402", "0X402", "0x", "0xzz", "0x10000", "0x-1", "0x4_0"):
        assert "for iobase;" in refusal(DebugConsoleConfig, f"tty,iobase={text}")


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("off", ConsoleMode.OFF),
        ("null", ConsoleMode.NULL),
        ("pty", ConsoleMode.PTY),
        ("tty", ConsoleMode.TTY),
        ("tty=", ConsoleMode.TTY),
        ("file=/log", ConsoleMode.FILE),
        ("socket=/s", ConsoleMode.SOCKET),
        ("off,file=/log", ConsoleMode.OFF),
    ],
)
def test_parse_console_mode_by_bare_key_or_path(text: str, mode: ConsoleMode) -> None:
    assert parse_option(SerialConfig, text).mode is mode


def test_parse_console_paths_and_slot() -> None:
    console = parse_option(ConsoleConfig, "file=/log,iommu=on,id=c,pci_segment=1,pci_device_id=4")
    assert (console.file, console.iommu, console.id) == ("/log", True, "c")
    assert (console.pci_segment, console.pci_device_id) == (1, 4)


def test_parse_console_without_a_mode_is_refused() -> None:
    assert "give off, null, pty, tty or file=path" in refusal(SerialConfig, "")
    assert "The mode is missing" in refusal(ConsoleConfig, "iommu=on")


def test_parse_debug_console_has_no_socket() -> None:
    assert refusal(DebugConsoleConfig, "socket=/s").startswith("Unknown option: socket;")


def test_parse_rate_limiter_needs_size_and_refill_time() -> None:
    limited = parse_option(DiskConfig, "path=x,bw_size=10,bw_refill_time=100,bw_one_time_burst=5")
    assert limited.rate_limiter_config == RateLimiterConfig(
        bandwidth=TokenBucket(size=10, one_time_burst=5, refill_time=100)
    )
    for text in ("bw_size=10", "bw_refill_time=1", "ops_size=0,ops_refill_time=1"):
        assert parse_option(DiskConfig, f"path=x,{text}").rate_limiter_config is None


def test_parse_rate_limit_group_without_limits_is_left_to_validation() -> None:
    group = parse_option(RateLimitGroupConfig, "id=g")
    assert group.rate_limiter_config == RateLimiterConfig()


def test_parse_required_key_that_is_absent_is_named() -> None:
    assert refusal(FsConfig, "tag=t") == "socket is missing; give socket="
    assert refusal(MemoryZoneConfig, "size=1G") == "id is missing; give id="
    with pytest.raises(ConfigError) as caught:
        parse_option(FsConfig, "")
    assert len(caught.value.problems) == 2


def test_parse_command_line_defaults_of_required_fields() -> None:
    assert parse_option(MemoryConfig, "").size == 512 * MIB
    assert parse_option(MemoryZoneConfig, "id=z").size == 512 * MIB
    assert parse_option(RngConfig, "").src == "/dev/urandom"


def test_parse_keys_named_unlike_their_fields() -> None:
    disk = parse_option(
        DiskConfig, "vhost_user=on,socket=/s,queue_affinity=[0@[1]],_disable_aio=on"
    )
    assert (disk.vhost_socket, disk.disable_aio) == ("/s", True)
    assert disk.queue_affinity == (VirtQueueAffinity(queue_index=0, host_cpus=(1,)),)
    assert parse_option(NetConfig, "fd=[3,4],num_queues=4").fds == (3, 4)
    assert parse_option(PlatformConfig, "iommu_address_width=48").iommu_address_width_bits == 48
    assert parse_option(DeviceConfig, "path=/d,x_exclude_mmap_bars=[1,2]").x_exclude_mmap_bars == (
        1,
        2,
    )


@pytest.mark.parametrize(
    ("text", "number"), [("net", 1), ("9p", 9), ("rdma", 42), ("usb", 49), ("26", 26), ("0", 0)]
)
def test_parse_virtio_device_type_by_name_or_number(text: str, number: int) -> None:
    option = f"device_type={text},socket=/s,queue_sizes=[64]"
    assert parse_option(GenericVhostUserConfig, option).device_type == number


@pytest.mark.parametrize("text", ["026", "Net", "nothing", "-1"])
def test_parse_virtio_device_type_other_forms_are_refused(text: str) -> None:
    option = f"device_type={text},socket=/s,queue_sizes=[64]"
    assert "for device_type;" in refusal(GenericVhostUserConfig, option)


def test_parse_old_key_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vmm.config"):
        platform = parse_option(PlatformConfig, "serial_number=s,uuid=u")
    assert (platform.system_serial_number, platform.system_uuid) == ("s", "u")
    assert "serial_number is the old name of system_serial_number" in caplog.text


def test_parse_old_and_new_key_together_are_refused() -> None:
    message = refusal(PlatformConfig, "uuid=a,system_uuid=b")
    assert message == "system_uuid and uuid mean the same; give system_uuid alone"


def test_parse_device_that_cannot_be_translated_has_no_iommu_key() -> None:
    assert refusal(FsConfig, "tag=t,socket=/s,iommu=on").startswith("Unknown option: iommu;")
