"""Which files a confined VMM keeps, and what a host without Landlock says."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.unit.test_config_validation import config_of
from vmm import sandbox
from vmm.errors import HostError
from vmm.kvm_cffi import landlock
from vmm.kvm_cffi.landlock import OF_FILES, READ, WRITE, Right, Ruleset
from vmm.sandbox import confine, grants_of

BOTH = READ | WRITE


@pytest.mark.parametrize(
    ("sections", "path", "rights"),
    [
        ({"payload": {"kernel": "/k", "initramfs": "/i"}}, "/i", READ),
        ({"payload": {"firmware": "/f"}}, "/f", READ),
        ({"disks": [{"path": "/d"}]}, "/d", BOTH),
        ({"disks": [{"path": "/d", "readonly": True}]}, "/d", READ),
        ({"pmem": [{"file": "/p"}]}, "/p", BOTH),
        ({"pmem": [{"file": "/p", "discard_writes": True}]}, "/p", READ),
        ({"ivshmem": {"path": "/s"}}, "/s", BOTH),
        ({"memory": {"size": 0, "zones": [{"id": "z", "size": 1, "file": "/m"}]}}, "/m", BOTH),
        ({"rng": {"src": "/r"}}, "/r", READ),
        ({"serial": {"mode": "File", "file": "/s"}}, "/s", BOTH),
        ({"serial": {"mode": "Socket", "socket": "/run/s"}}, "/run", WRITE),
        ({"vsock": {"cid": 3, "socket": "/run/v"}}, "/run", WRITE),
        ({"landlock_rules": [{"path": "/x", "access": "r"}]}, "/x", READ),
        ({"landlock_rules": [{"path": "/x", "access": "w"}]}, "/x", WRITE),
        ({"landlock_rules": [{"path": "/x", "access": "rw"}]}, "/x", BOTH),
    ],
)
def test_file_of_the_configuration_is_kept(
    sections: dict[str, object], path: str, rights: Right
) -> None:
    kept = {grant.path: grant.rights for grant in grants_of(config_of(**sections))}

    assert kept[path] == rights


def test_rights_of_files_and_directories_are_those_of_the_kernel() -> None:
    assert READ | WRITE == (1 << 15) - 1
    assert not READ & WRITE
    assert OF_FILES == 0b100_0000_0000_0111


@pytest.mark.parametrize("version", [-errno.ENOSYS, -errno.EOPNOTSUPP, 2])
def test_kernel_without_enough_of_it_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    class Lib:
        def vk_landlock_abi(self) -> int:
            return version

    monkeypatch.setattr(landlock, "lib", Lib())

    with pytest.raises(HostError, match=r"Landlock failed: .*; use a kernel of version 6.2"):
        Ruleset()


def test_vm_that_does_not_ask_for_it_is_not_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "Ruleset", None)

    confine(config_of(landlock_rules=[{"path": "/x", "access": "r"}]))


def test_ruleset_that_nobody_obeys_leaves_nothing() -> None:
    before = os.listdir("/proc/self/fd")
    try:
        with Ruleset() as rules:
            rules.allow("/", READ)
            with pytest.raises(HostError, match="open for Landlock on /nowhere"):
                rules.allow("/nowhere", READ)
    except HostError as error:
        pytest.skip(str(error))

    assert os.listdir("/proc/self/fd") == before


def test_directory_it_was_started_in_is_none_of_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))

    assert str(tmp_path) not in set(sandbox._modules())
    assert os.path.dirname(sandbox.__file__) in set(sandbox._modules())
