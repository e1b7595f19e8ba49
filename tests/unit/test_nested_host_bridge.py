"""Guest tests replayed from an inner pytest; a program of the test stands for the nested host."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools.nested_host import inner_pytest, pytest_bridge

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = "from tools.nested_host.pytest_bridge import pytest_configure\n"
INI = "[pytest]\nmarkers = guest\naddopts = -p no:trio\n"
# Stands for `python -m tools.nested_host run … -- COMMAND`: runs the command here. Where the test
# says so it dies as the tool does when the host dies, once or always.
TOOL = """
import os, pathlib, sys
command = sys.argv[sys.argv.index("--") + 1:]
deaths = pathlib.Path("deaths")
left = int(deaths.read_text()) if deaths.exists() else 0
if left:
    # Another host may be reading it.
    draft = pathlib.Path(f"deaths.{os.getpid()}")
    draft.write_text(str(left - 1))
    draft.rename(deaths)
    print("Kernel panic", file=sys.stderr)
    sys.exit(125)
os.environ["TRIO_VMM_HOST"] = "direct"
os.execv(sys.executable, [sys.executable, *command[1:]])
"""
TESTS = """
import os, pytest

def test_here():
    assert os.environ["TRIO_VMM_HOST"] == "nested"

@pytest.mark.guest
def test_there():
    print("said inside")
    assert os.environ["TRIO_VMM_HOST"] == "direct"

@pytest.mark.guest
@pytest.mark.parametrize("value", [1, 2])
def test_value(value):
    assert value == 1

@pytest.mark.guest
def test_skips():
    pytest.skip("for a reason")
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project that takes part, on a machine whose KVM does not run Linux."""
    pytester.makeconftest(CONFTEST)
    pytester.makeini(INI)
    tool = pytester.path / "tool.py"
    tool.write_text(TOOL)
    monkeypatch.setattr(inner_pytest, "TOOL", (sys.executable, str(tool)))
    monkeypatch.setattr(inner_pytest, "WARM_PROJECT", ("true",))
    monkeypatch.setenv("TRIO_VMM_HOST", "nested")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return pytester


def test_each_guest_test_has_its_own_result(project: pytest.Pytester) -> None:
    project.makepyfile(TESTS)

    result = project.runpytest_inprocess("-rA")

    result.assert_outcomes(passed=3, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*4 guest tests ran in the nested host, because TRIO_VMM_HOST*"])
    result.stdout.fnmatch_lines(["*said inside*", "FAILED *test_value?2? - assert 2 == 1"])


def test_host_that_dies_once_is_restored_and_reported(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytest_bridge, "MOST_HOSTS", 1)
    project.makepyfile(TESTS)
    (project.path / "deaths").write_text("1")

    result = project.runpytest_inprocess()

    result.assert_outcomes(passed=3, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["the nested host died during *::test_there", "*Kernel panic"])


def test_host_that_keeps_dying_fails_the_tests_with_its_words(project: pytest.Pytester) -> None:
    project.makepyfile(TESTS)
    (project.path / "deaths").write_text("99")

    result = project.runpytest_inprocess()

    result.assert_outcomes(passed=1, failed=4)
    result.stdout.fnmatch_lines(["*Kernel panic*"])


def test_inner_pytest_that_cannot_start_fails_every_test_once(project: pytest.Pytester) -> None:
    project.makepyfile(TESTS)
    (project.path / "tool.py").write_text("raise SystemExit('no such thing')")

    result = project.runpytest_inprocess()

    result.assert_outcomes(passed=1, failed=4)
    result.stdout.fnmatch_lines(["*no such thing*"])


def test_guest_tests_run_directly_where_kvm_can(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_VMM_HOST", "direct")
    project.makepyfile(TESTS)

    result = project.runpytest_inprocess()

    result.assert_outcomes(passed=2, failed=2, skipped=1)
    result.stdout.no_fnmatch_line("*nested host*")


STALLING = """
import pathlib, pytest
from vmm.testing.stall import Stalled

@pytest.mark.guest
def test_stalls():
    tries = pathlib.Path("tries")
    count = int(tries.read_text()) if tries.exists() else 0
    tries.write_text(str(count + 1))
    if count < STALLS:
        raise ExceptionGroup("of a nursery", [Stalled("it did not come")])

@pytest.mark.guest
def test_after():
    pass
"""


def test_guest_that_stalls_once_is_tried_again_and_reported(project: pytest.Pytester) -> None:
    project.makepyfile(STALLING.replace("STALLS", "1"))

    result = project.runpytest_inprocess()

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["a guest stood still during *test_stalls, which was tried once*"])


def test_guest_that_stalls_twice_has_failed(project: pytest.Pytester) -> None:
    project.makepyfile(STALLING.replace("STALLS", "2"))

    result = project.runpytest_inprocess()

    result.assert_outcomes(passed=1, failed=1)
    assert (project.path / "tries").read_text() == "2"
