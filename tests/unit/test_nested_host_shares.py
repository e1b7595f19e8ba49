"""What the nested host sees, and what its files are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.nested_host import serial_log
from tools.nested_host.errors import NestedHostError
from tools.nested_host.instance import Instance
from tools.nested_host.launch import KEPT_VERSIONS, forget_older
from tools.nested_host.shares import Shares, tree_script


@pytest.fixture
def shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shares:
    monkeypatch.setenv("TRIO_VMM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "check out" / ".venv").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    return Shares(tmp_path / "check out", tmp_path / "results")


def test_tree_makes_all_but_the_results_read_only(shares: Shares, tmp_path: Path) -> None:
    script = tree_script(shares, tmp_path / "tree", 3)

    read_only = [line for line in script.splitlines() if "remount,bind,ro" in line]
    assert [line.rsplit("/", 1)[1] for line in read_only] == ["checkout", "cache", "pycache"]
    assert f"mount --bind '{shares.checkout}' {tmp_path}/tree/checkout" in script


def test_mounts_show_each_folder_at_the_path_it_has_here(shares: Shares) -> None:
    mounts = {entry["target"]: entry for entry in shares.mount_request()["mounts"]}

    assert mounts[str(shares.checkout)]["type"] == "overlay"
    assert mounts[str(shares.cache)]["source"].endswith("/cache")
    assert mounts[str(shares.results)]["source"].endswith("/results")
    assert mounts[f"{shares.checkout}/.venv"]["source"] == "/opt/venv"


def test_commands_inside_use_the_kvm_that_is_inside(shares: Shares) -> None:
    assert shares.environment()["TRIO_VMM_HOST"] == "direct"


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a", "x" * 33])
def test_instance_with_a_name_unfit_for_a_path_is_refused(name: str) -> None:
    with pytest.raises(NestedHostError, match="no name"):
        Instance(name)


def test_instance_that_is_not_up_says_how_to_start_it() -> None:
    with pytest.raises(NestedHostError, match="up --name surely-not-there"):
        Instance("surely-not-there").shares()


@pytest.mark.parametrize(
    ("text", "is_broken"),
    [
        ("[    1.0] BUG: unable to handle page fault for address: 0\n", True),
        ("[    1.0] Kernel panic - not syncing: Attempted to kill init!\n", True),
        ("[    1.0] Oops: int3: 0000 [#1] PREEMPT SMP\n", True),
        ("[    1.0] Run /init as init process\n", False),
    ],
)
def test_oops_is_found_in_the_serial_log(tmp_path: Path, text: str, is_broken: bool) -> None:
    (tmp_path / serial_log.LOG_NAME).write_text(text)

    assert serial_log.has_oops(tmp_path) is is_broken


def test_tail_of_a_missing_log_says_so(tmp_path: Path) -> None:
    assert "nothing" in serial_log.tail(tmp_path)


def test_old_versions_are_removed_but_for_the_last_few(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(KEPT_VERSIONS + 2)]
    for age, folder in enumerate(folders):
        folder.mkdir()
        os.utime(folder, (age, age))

    forget_older(folders[-1])

    assert [folder.exists() for folder in folders] == [False] * 2 + [True] * KEPT_VERSIONS


def test_tail_of_a_broken_kernel_begins_with_its_complaint(tmp_path: Path) -> None:
    trace = "\n".join(f"line {number}" for number in range(100))
    (tmp_path / serial_log.LOG_NAME).write_text(f"before\n[1.0] kernel BUG at x.c:1!\n{trace}\n")

    assert serial_log.tail(tmp_path).startswith("[1.0] kernel BUG at x.c:1!\nline 0\n")
