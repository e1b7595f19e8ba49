"""Fetching packages: what the cache has needs no apt, and unknown names are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.images import debian
from tools.images.cache import ImageError

CONTROL = """\
Package: linux-image-cloud-amd64
Version: 6.12.95-1~bpo12+1
Depends: linux-image-6.12.95-cloud-amd64 (= 6.12.95-1~bpo12+1), kmod | busybox:any,
 linux-base
Description: Linux
 Depends: not this
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIO_VMM_CACHE", str(tmp_path))
    # apt is not to be found: a call of it fails the test.
    monkeypatch.setenv("PATH", "")
    return tmp_path


@pytest.fixture
def tree(cache: Path) -> Path:
    """A package that is in the cache already."""
    tree = cache / "packages" / "tool_1.0"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(CONTROL)
    latest = cache / "packages" / "sid" / "tool"
    latest.parent.mkdir()
    latest.symlink_to("../tool_1.0")
    return tree


def test_fetch_of_cached_package_runs_no_apt(tree: Path) -> None:
    assert debian.fetch("tool", "sid") == tree


def test_fetch_of_cached_package_from_read_only_cache_works(tree: Path, cache: Path) -> None:
    cache.chmod(0o555)
    try:
        assert debian.fetch("tool", "sid") == tree
        assert not (cache / ".packages.lock").exists()
    finally:
        cache.chmod(0o755)


@pytest.mark.usefixtures("cache")
def test_fetch_from_unknown_suite_names_the_known() -> None:
    with pytest.raises(
        ImageError, match="no suite 'woody'; known are bookworm, bookworm-backports"
    ):
        debian.fetch("tool", "woody")


def test_fetch_whole_of_cached_package_runs_no_apt(tree: Path, cache: Path) -> None:
    latest = cache / "packages" / "trixie-backports-whole" / "tool"
    latest.parent.mkdir()
    latest.symlink_to("../tool_1.0")
    assert debian.fetch_whole("tool", "trixie-backports") == tree


@pytest.mark.usefixtures("cache")
def test_fetch_whole_from_a_suite_without_all_its_parts_names_the_known() -> None:
    with pytest.raises(ImageError, match="Nothing whole comes from 'sid'; known is trixie-backp"):
        debian.fetch_whole("tool", "sid")


def test_depends_is_the_first_of_each_alternative(tree: Path) -> None:
    assert debian.depends(tree) == ["linux-image-6.12.95-cloud-amd64", "kmod", "linux-base"]


def test_version_is_the_packages_own(tree: Path) -> None:
    assert debian.version(tree) == "6.12.95-1~bpo12+1"
