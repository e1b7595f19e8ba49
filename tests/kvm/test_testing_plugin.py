"""The fixtures for users, as docs/testing.md shows them, in a project of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.documents import ROOT, blocks
from tools.bench.guests import write_guests

pytestmark = pytest.mark.kvm

PAGE = ROOT / "docs" / "testing.md"
OPTIONS = ("-p", "no:cacheprovider", "-o", "trio_mode=true", "-W", "error", "-q")


def run_pytest(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of a project outside of this one."""
    command = [sys.executable, "-m", "pytest", *OPTIONS, str(project)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that the page shows."""
    conftest, example = (block for block in blocks(PAGE) if re.search(r"^(pytest_|# test)", block))
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_guest.py").write_text(example)
    return tmp_path


def test_example_of_the_page_passes_with_a_guest(project: Path) -> None:
    guests = write_guests(project)

    done = run_pytest(project, KERNEL=str(guests.idle))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_project_without_a_configuration_is_told_to_write_one(project: Path) -> None:
    (project / "test_guest.py").write_text("async def test_it(vm): pass\n")

    done = run_pytest(project)

    assert done.returncode != 0
    assert "The fixture vm_config says which VM the vm fixtures make; write one" in done.stdout
