"""Snapshots as a client asks for them: what is refused, what is left, and what goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.hotplug import CPUS
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import check_nothing_left, holdings
from tests.kvm.guests.machines import Owned, configure, owned
from vmm.config.disk import DiskConfig
from vmm.config.requests import RestoreConfig, VmResize
from vmm.config.vm import VmConfig
from vmm.errors import AlreadyCreatedError, ConfigError, HostError, StateError, VmmError
from vmm.machine.commands import (
    AddDevice,
    Boot,
    Create,
    Delete,
    Pause,
    Reboot,
    Resize,
    Restore,
    Resume,
    Snapshot,
)

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

MIB = 1 << 20
FILES = ["config.json", "memory-ranges", "state.json"]


def restore(folder: Path, **options: object) -> Restore:
    request = {"source_url": f"file://{folder}", **options}
    return Restore(RestoreConfig.model_validate(request))


async def saved(held: Owned, folder: Path) -> None:
    """Have the running VM written to a new directory, and forgotten."""
    await trio.Path(folder).mkdir()
    await held.do(Pause(), Snapshot(f"file://{folder}"), Delete())


@pytest.fixture
def config(tmp_path: Path) -> VmConfig:
    """A VM with one of each kind of device that needs nothing of the host but files."""
    for name in ("disk", "pmem", "shared"):
        (tmp_path / name).write_bytes(bytes(8 * MIB))
    return configure(
        write_kernel(tmp_path, programs.COUNT_AND_TELL),
        disks=[{"path": str(tmp_path / "disk"), "image_type": "Raw"}],
        pmem=[{"file": str(tmp_path / "pmem")}],
        vsock={"cid": 3, "socket": str(tmp_path / "vsock")},
        balloon={"size": 4 * MIB},
        watchdog=True,
        pvpanic=True,
        ivshmem={"path": str(tmp_path / "shared"), "size": 8 * MIB},
        rtc={},
        console={"mode": "Null"},
    )


async def test_vm_is_saved_forgotten_restored_and_runs(tmp_path: Path, config: VmConfig) -> None:
    async with owned(config) as held:
        tree = held.owner.info().device_tree
        await saved(held, tmp_path / "snapshot")
        assert sorted(os.listdir(tmp_path / "snapshot")) == FILES

        await held.do(restore(tmp_path / "snapshot"))
        info = held.owner.info()
        assert (info.state, info.device_tree) == ("Paused", tree)
        await held.do(Resume())
        assert held.owner.info().state == "Running"
        await held.do(Reboot())

        wanted = ["snapshotting", "snapshotted", "deleted", "restoring", "restored", "resuming"]
        assert [name for name in held.events.names if name in wanted] == wanted


async def test_restored_vm_can_be_resumed_at_once_and_saved_again(
    tmp_path: Path, config: VmConfig
) -> None:
    async with owned(config) as held:
        await saved(held, tmp_path / "first")
        await held.do(restore(tmp_path / "first"))
        await trio.Path(tmp_path / "second").mkdir()
        await held.do(Snapshot(f"file://{tmp_path}/second"), Delete())

        await held.do(restore(tmp_path / "second", resume=True))

        assert held.owner.info().state == "Running"


async def test_what_was_plugged_in_is_there_again(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    config = configure(
        write_kernel(tmp_path, programs.HALT),
        cpus={**CPUS, "max_vcpus": 4},
        memory={"size": 64 * MIB, "hotplug_size": 512 * MIB},
    )
    disk = DiskConfig.model_validate({"path": str(tmp_path / "disk"), "image_type": "Raw"})
    async with owned(config) as held:
        await held.do(
            AddDevice("disks", disk.model_copy(update={"id": "late", "pci_device_id": 20})),
            Resize(VmResize(desired_vcpus=3, desired_ram=192 * MIB)),
            Resize(VmResize(desired_ram=320 * MIB)),
        )
        before = held.owner.info()
        await saved(held, tmp_path / "snapshot")

        await held.do(restore(tmp_path / "snapshot"))

        after = held.owner.info()
        assert after.device_tree == before.device_tree
        assert after.memory_actual_size == before.memory_actual_size == 320 * MIB
        assert after.config == before.config
        await held.do(Resume(), Resize(VmResize(desired_vcpus=4, desired_ram=448 * MIB)))
        assert held.owner.info().memory_actual_size == 448 * MIB


async def test_snapshot_of_a_vm_that_is_not_paused_is_refused(
    tmp_path: Path, config: VmConfig
) -> None:
    async with owned(config) as held:
        with pytest.raises(StateError, match="is Running; pause it"):
            await held.do(Snapshot(f"file://{tmp_path}"))

    assert not set(FILES) & set(os.listdir(tmp_path))


@pytest.mark.parametrize("name", FILES)
async def test_snapshot_where_a_file_of_one_is_already_is_refused_and_leaves_it(
    name: str, tmp_path: Path, config: VmConfig
) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / name).write_text("mine")
    async with owned(config) as held:
        await held.do(Pause())
        with pytest.raises(HostError, match="has no snapshot yet"):
            await held.do(Snapshot(f"file://{folder}"))
        assert held.owner.info().state == "Paused"
        await held.do(Resume())

    assert os.listdir(folder) == [name]
    assert (folder / name).read_text() == "mine"


@pytest.mark.parametrize("url", ["file:///nowhere/at/all", "http://host/a", "file://relative"])
async def test_snapshot_to_no_directory_is_refused(url: str, config: VmConfig) -> None:
    async with owned(config) as held:
        await held.do(Pause())
        with pytest.raises((HostError, ConfigError), match="give"):
            await held.do(Snapshot(url))


async def test_snapshot_that_does_not_fit_leaves_nothing(
    tmp_path: Path, config: VmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()

    def full(*args: object) -> int:
        raise HostError("write", 28)

    monkeypatch.setattr("vmm.snapshot.carrying.write_ram", full)
    async with owned(config) as held:
        await held.do(Pause())
        with pytest.raises(HostError, match="free room"):
            await held.do(Snapshot(f"file://{folder}"))
        await held.do(Resume())

    assert os.listdir(folder) == []


async def test_restore_where_a_vm_is_created_is_refused(tmp_path: Path, config: VmConfig) -> None:
    async with owned() as held:
        await held.do(Create(config))
        with pytest.raises(AlreadyCreatedError):
            await held.do(restore(tmp_path))
        await held.do(Boot())


def shorten(path: Path) -> None:
    os.truncate(path / "memory-ranges", 8 * MIB)


def cut(path: Path) -> None:
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text[: len(text) // 2])


def change(name: str, old: str, new: str, path: Path) -> None:
    text = (path / name).read_text()
    assert old in text
    (path / name).write_text(text.replace(old, new))


def age(path: Path) -> None:
    change("state.json", '\\"version\\":1', '\\"version\\":0', path)


def outdate(path: Path) -> None:
    change("state.json", '\\"version\\":1', '\\"version\\":77', path)


def enlarge(path: Path) -> None:
    change("config.json", '"max_vcpus":1', '"max_vcpus":2', path)


def unplug(path: Path) -> None:
    document = json.loads((path / "config.json").read_text())
    del document["disks"]
    (path / "config.json").write_text(json.dumps(document))


def lose_disk(path: Path) -> None:
    (path.parent / "disk").unlink()


def lose(name: str, path: Path) -> None:
    (path / name).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shorten, "the file is not whole"),
        (cut, "state.json cannot be read"),
        (age, "has version 0, and this program reads version 1"),
        (outdate, "has version 77"),
        (enlarge, "restore it with the cpus.max_vcpus that it had"),
        (unplug, "restore it with its own config.json"),
        (lose_disk, "No such file"),
        (lambda path: lose("config.json", path), "directory of a whole snapshot"),
        (lambda path: lose("state.json", path), "directory of a whole snapshot"),
        (lambda path: lose("memory-ranges", path), "directory of a whole snapshot"),
    ],
    ids=[
        "short",
        "cut",
        "old",
        "new",
        "larger",
        "unplugged",
        "no disk",
        "no config",
        "no state",
        "no memory",
    ],
)
async def test_restore_that_cannot_be_leaves_the_vmm_ready_for_another(
    damage: object, said: str, tmp_path: Path, config: VmConfig
) -> None:
    async with owned(config) as held:
        await saved(held, tmp_path / "good")
        await trio.to_thread.run_sync(copy, tmp_path / "good", tmp_path / "bad")
        before = holdings()
        assert callable(damage)
        damage(tmp_path / "bad")

        with pytest.raises(VmmError) as caught:
            await held.do(restore(tmp_path / "bad"))

        assert said in " ".join(chain_of(caught.value))
        check_nothing_left(before)
        if damage is not lose_disk:
            await held.do(restore(tmp_path / "good", resume=True))


def copy(source: Path, target: Path) -> None:
    target.mkdir()
    for name in FILES:
        (target / name).write_bytes((source / name).read_bytes())


def chain_of(error: BaseException) -> list[str]:
    from vmm.errors import chain

    return list(chain(error))
