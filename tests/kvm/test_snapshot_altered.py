"""States that somebody changed: a machine is made of them or refused, and the VMM lives on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import check_nothing_left, holdings
from tests.kvm.guests.machines import configure, owned
from vmm.config.requests import RestoreConfig
from vmm.errors import ConfigError, VmmError
from vmm.machine.commands import Delete, Pause, Restore, Snapshot
from vmm.snapshot.state import FUNCTION

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

MIB = 1 << 20
CHANGES = 60
NUMBERS = (0, 1, 7, 0xFF, 0xFFFF, (1 << 32) - 1, 1 << 40, (1 << 64) - 1)


def leaves(node: dict[str, Any]) -> list[dict[str, str]]:
    """Every state of a tree."""
    own = [node["snapshot_data"]] if node["snapshot_data"] else []
    return own + [leaf for child in node["snapshots"].values() for leaf in leaves(child)]


def change(value: Any, dice: random.Random) -> Any:  # noqa: ANN401  whatever JSON gives
    """The same value with one part of it changed."""
    match value:
        case dict() if value:
            key = dice.choice(sorted(value))
            return {**value, key: change(value[key], dice)}
        case list() if value and dice.random() < 0.8:
            at = dice.randrange(len(value))
            return [*value[:at], change(value[at], dice), *value[at + 1 :]]
        case list():
            return value[:-1]
        case bool():
            return not value
        case int():
            return dice.choice(NUMBERS)
        case str() if value:
            at = dice.randrange(len(value))
            return value[:at] + dice.choice("0f") + value[at + 1 :]
    return value


async def test_machine_of_a_changed_state_is_made_or_refused_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    for name in ("disk", "pmem", "shared"):
        (tmp_path / name).write_bytes(bytes(2 * MIB))
    config = configure(
        write_kernel(tmp_path, programs.COUNT_AND_TELL),
        memory={"size": 16 * MIB, "hotplug_size": 128 * MIB},
        cpus={"boot_vcpus": 2, "max_vcpus": 2},
        disks=[{"path": str(tmp_path / "disk"), "image_type": "Raw"}],
        pmem=[{"file": str(tmp_path / "pmem")}],
        vsock={"cid": 3, "socket": str(tmp_path / "vsock")},
        balloon={"size": MIB},
        pvpanic=True,
        ivshmem={"path": str(tmp_path / "shared"), "size": 2 * MIB},
    )
    folder = trio.Path(tmp_path / "snapshot")
    await folder.mkdir()
    outcomes: set[str] = set()
    async with owned(config) as held:
        await held.do(Pause(), Snapshot(f"file://{folder}"), Delete())
        whole = await (folder / "state.json").read_text()
        before = holdings()
        for seed in range(CHANGES):
            dice = random.Random(seed)
            tree = json.loads(whole)
            leaf = dice.choice(leaves(tree))
            leaf["state"] = json.dumps(change(json.loads(leaf["state"]), dice))
            await (folder / "state.json").write_text(json.dumps(tree))
            try:
                await held.do(Restore(RestoreConfig(source_url=f"file://{folder}")))
                outcomes.add("made")
            except VmmError:
                outcomes.add("refused")
            await held.do(Delete())
        check_nothing_left(before)

    assert outcomes == {"made", "refused"}


@pytest.mark.parametrize(
    ("part", "altered", "message"),
    [
        ("place", {"bar_address": 0x1000}, "BAR 0 .* of __rng is at 0x1000"),
        ("place", {"bar_address": 0x8_0000, "bar_kind": "MEMORY32"}, None),
        ("place", {"bar_address": 1 << 40, "bar_kind": "MEMORY32"}, r"0x80000 bytes cannot lie"),
        ("pci-configuration", {"probed": [3]}, None),
        ("pci-configuration", {"probed": [4]}, "Device __rng .* BAR 0 are being sized by 0x4"),
    ],
)
async def test_bar_that_cannot_be_where_or_as_it_was_is_refused_by_name(
    tmp_path: Path, part: str, altered: dict[str, object], message: str | None
) -> None:
    folder = trio.Path(tmp_path / "snapshot")
    await folder.mkdir()
    config = configure(write_kernel(tmp_path, programs.COUNT_AND_TELL))
    async with owned(config) as held:
        await held.do(Pause(), Snapshot(f"file://{folder}"), Delete())
        tree = json.loads(await (folder / "state.json").read_text())
        devices = tree["snapshots"]["device-manager"]["snapshots"]
        leaf = devices[f"{FUNCTION}__rng"]["snapshots"][part]["snapshot_data"]
        leaf["state"] = json.dumps(json.loads(leaf["state"]) | altered)
        await (folder / "state.json").write_text(json.dumps(tree))

        restore = Restore(RestoreConfig(source_url=f"file://{folder}"))
        if message is None:
            await held.do(restore)
        else:
            with pytest.raises(ConfigError, match=message):
                await held.do(restore)
