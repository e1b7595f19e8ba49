"""The cache: what is made appears whole, once, or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.images.cache import cache_dir, exclusive, make_file, make_tree


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIO_VMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_dir_is_what_the_environment_names(cache: Path) -> None:
    assert cache_dir() == cache
    assert cache.is_dir()


def test_cache_dir_without_environment_is_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRIO_VMM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert cache_dir() == tmp_path / ".cache" / "trio-vmm"


def test_make_file_that_exists_is_not_made_again(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    make_file(target, lambda path: path.touch())

    make_file(target, lambda path: pytest.fail("made twice"))

    assert target.exists()


def test_make_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        make_file(tmp_path / "file", fail)

    assert list(tmp_path.iterdir()) == []


def test_make_tree_that_lost_the_race_keeps_the_winner(tmp_path: Path) -> None:
    target = tmp_path / "tree"

    def fill(path: Path) -> None:
        (path / "mine").touch()
        target.mkdir()
        (target / "theirs").touch()

    make_tree(target, fill)

    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_exclusive_keeps_other_processes_out(cache: Path) -> None:
    probe = f"""
import fcntl
with open({str(cache / ".part.lock")!r}, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""

    with exclusive("part"):
        during = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False)
    after = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False)

    assert b"BlockingIOError" in during.stderr
    assert after.returncode == 0
