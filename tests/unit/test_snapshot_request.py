"""What a request for a restore makes of the configuration that was saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmm.config.requests import RestoreConfig
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError, HostError, UnsupportedError
from vmm.kvm_cffi.structs import CpuidEntry
from vmm.machine.brought_back import check_cpuid
from vmm.machine.saved import SavedClock, SavedMemory, SavedProcessors
from vmm.snapshot.restore import Snapshot
from vmm.snapshot.state import MachineState

STATE = MachineState(
    SavedClock(clock=0, stood_at=0, read_at=0),
    SavedProcessors(boot_vcpus=1, common_cpuid=()),
    {},
    SavedMemory(phys_bits=36, boot_ram=512 << 20, dimms=(), ranges=()),
    {},
    {},
)
CONFIG = {
    "payload": {"kernel": "/vmlinux"},
    "net": [{"id": "lan", "fds": [7, 8]}, {"id": "named", "tap": "tap0"}],
    "memory": {"size": 0, "zones": [{"id": "near", "size": 512 << 20}]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A snapshot without RAM."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "state.json").write_text(STATE.to_json())
    return tmp_path


def read(folder: Path, *sent: int, **options: object) -> VmConfig:
    request = RestoreConfig.model_validate({"source_url": f"file://{folder}", **options})
    return Snapshot(request, sent).config


def fds_of(config: VmConfig) -> list[tuple[int, ...] | None]:
    return [net.fds for net in config.net or ()]


def test_network_gets_the_descriptors_that_were_sent_for_it(folder: Path) -> None:
    config = read(folder, 20, 21, net_fds=[{"id": "lan", "num_fds": 2}])

    assert fds_of(config) == [(20, 21), None]


def test_network_gets_the_descriptors_that_the_command_line_names(folder: Path) -> None:
    config = read(folder, 30, 31, net_fds=[{"id": "lan", "fds": (30, 31)}])

    assert fds_of(config) == [(30, 31), None]


@pytest.mark.parametrize(
    ("nets", "sent", "said"),
    [
        ([], (), "Net id lan is associated with FDs and is required"),
        ([{"id": "lan", "num_fds": 1}], (20,), "Number of Net FDs passed for lan is 1"),
        ([{"id": "lan", "num_fds": 2}], (20,), "2 descriptors in all .num_fds., and 1 were sent"),
        ([{"id": "lan", "num_fds": 2}], (20, 21, 22), "and 3 were sent"),
    ],
)
def test_descriptors_that_do_not_fit_are_refused(
    nets: list[dict[str, object]], sent: tuple[int, ...], said: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        read(folder, *sent, net_fds=nets)


def test_configuration_whose_descriptors_are_no_list_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "net": [{"id": "lan", "fds": 5}]}))

    with pytest.raises(ConfigError, match=r"net.fds is 5; it must be a list"):
        read(folder)


def test_zone_moves_to_another_node_of_the_host(folder: Path) -> None:
    nets = [{"id": "lan", "fds": (3, 4)}]

    config = read(folder, net_fds=nets, zone_updates=[{"id": "near", "host_numa_node": 1}])

    assert [zone.host_numa_node for zone in config.memory.zones or ()] == [1]
    with pytest.raises(ConfigError, match="no such memory zone"):
        read(folder, net_fds=nets, zone_updates=[{"id": "far", "host_numa_node": 1}])


def test_what_is_for_vfio_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="vfio_fds"):
        read(folder, vfio_fds=[{"id": "gpu", "fd": 9}])


def test_directory_without_a_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"config\.json.*whole snapshot"):
        read(tmp_path)


def leaf(function: int, **registers: int) -> CpuidEntry:
    return CpuidEntry(function, **registers)


MAKER = leaf(0, ebx=1, ecx=2, edx=3)


def test_processors_with_more_features_take_a_guest_of_fewer() -> None:
    check_cpuid([MAKER, leaf(1, ecx=0b01)], [MAKER, leaf(1, ecx=0b11), leaf(7, ebx=1)])


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ([MAKER, leaf(1, ecx=0b111)], "leaf 0x1.0 ECX bits 0x4"),
        ([MAKER, leaf(7, ebx=1 << 5)], "leaf 0x7.0 EBX bits 0x20"),
        ([leaf(0, ebx=9)], "another maker"),
    ],
)
def test_processors_that_lack_a_feature_are_refused_by_leaf_and_bits(
    saved: list[CpuidEntry], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_cpuid(saved, [MAKER, leaf(1, ecx=0b11)])
