"""What is added to Debian on the root disk, and the scripts it runs."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from tools.images.rootdisk import write_additions

IMAGES = Path(__file__).resolve().parents[2] / "tools" / "images"
UNITS = "etc/systemd/system"


@pytest.fixture
def additions(tmp_path: Path) -> dict[str, tarfile.TarInfo]:
    path = tmp_path / "additions.tar"
    write_additions(path)
    with tarfile.open(path) as archive:
        return {entry.name: entry for entry in archive}


def test_additions_belong_to_root(additions: dict[str, tarfile.TarInfo]) -> None:
    assert {(entry.uid, entry.gid) for entry in additions.values()} == {(0, 0)}


def test_additions_that_are_run_are_executable(additions: dict[str, tarfile.TarInfo]) -> None:
    programs = {entry.name for entry in additions.values() if entry.isfile() and entry.mode & 0o111}

    assert programs == {"usr/lib/systemd/system-shutdown/say-end", "usr/local/lib/guest/run"}


def test_additions_start_the_guest_target_and_nothing_masked(
    additions: dict[str, tarfile.TarInfo],
) -> None:
    links = {entry.name: entry.linkname for entry in additions.values() if entry.issym()}
    masked = {name.rpartition("/")[2] for name, target in links.items() if target == "/dev/null"}
    started = {target.rpartition("/")[2] for target in links.values() if target != "/dev/null"}

    assert additions[f"{UNITS}/{links[f'{UNITS}/default.target']}"].isfile()
    assert "systemd-networkd.service" in started
    assert not started & masked


@pytest.mark.parametrize(("shell", "name"), [("sh", "root_init.sh"), ("bash", "root_run.sh")])
def test_script_of_the_root_disk_is_valid(shell: str, name: str) -> None:
    done = subprocess.run([shell, "-n", str(IMAGES / name)], capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (0, b"")
