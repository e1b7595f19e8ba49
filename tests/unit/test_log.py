"""The log: levels, the form of a line, and files that cannot take it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

from vmm.errors import HostError
from vmm.log import TRACE, set_up_log

ours = logging.getLogger("vmm.machine.vm")
theirs = logging.getLogger("hpack.hpack")

LINES = 10_000
"""More than a pipe holds."""
MANY_LINES = f"""
import logging
from vmm.log import set_up_log
with set_up_log(0, None):
    for number in range({LINES}):
        logging.getLogger("vmm.x").warning("line %d", number)
print("all said")
"""


@pytest.mark.parametrize(
    ("verbosity", "names"),
    [
        (0, ["WARNING"]),
        (1, ["WARNING", "INFO"]),
        (2, ["WARNING", "INFO", "DEBUG"]),
        (3, ["WARNING", "INFO", "DEBUG", "TRACE"]),
        (9, ["WARNING", "INFO", "DEBUG", "TRACE"]),
    ],
)
def test_verbosity_lets_levels_through(verbosity: int, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "log"
    with set_up_log(verbosity, str(path)):
        for level in (logging.WARNING, logging.INFO, logging.DEBUG, TRACE):
            ours.log(level, "said")

    assert re.findall(r"> (\w+):", path.read_text()) == names


@pytest.mark.parametrize(("verbosity", "is_heard"), [(2, False), (3, True)])
def test_libraries_are_heard_only_when_everything_is(
    verbosity: int, is_heard: bool, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    with set_up_log(verbosity, str(path)):
        theirs.debug("said")

    assert ("said" in path.read_text()) == is_heard


async def test_line_names_the_task_that_speaks(tmp_path: Path) -> None:
    path = tmp_path / "log"

    async def speak() -> None:
        ours.warning("a %s", "message")

    with set_up_log(0, str(path)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak, name="vCPU 0")

    pattern = r"vmm: \d+\.\d{6}s: <vCPU 0> WARNING:test_log:\d+ -- a message\n"
    assert re.fullmatch(pattern, path.read_text())


def test_line_outside_the_loop_names_the_thread(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with set_up_log(0, str(path)):
        ours.warning("message")

    assert f"<{threading.current_thread().name}>" in path.read_text()


def test_traceback_follows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with set_up_log(0, str(path)):
        try:
            raise ValueError("reason")
        except ValueError:
            ours.exception("message")

    assert path.read_text().endswith("ValueError: reason\n")


def test_file_of_an_earlier_run_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    with set_up_log(0, str(path)):
        ours.warning("new")

    assert "old" not in path.read_text()


def test_log_without_a_file_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with set_up_log(0, None):
        ours.warning("message")

    assert capfd.readouterr().err.endswith(" -- message\n")


def test_full_disk_gives_one_message_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with set_up_log(0, "/dev/full"):
        for _ in range(3):
            ours.warning("message")

    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "/dev/full" in lines[0]
    assert "No space left" in lines[0]


def test_file_that_cannot_be_opened_is_refused() -> None:
    with pytest.raises(HostError, match="/nonexistent/folder/log"):
        set_up_log(0, "/nonexistent/folder/log").__enter__()


def test_end_restores_what_was_before(tmp_path: Path) -> None:
    root, package = logging.getLogger(), logging.getLogger("vmm")
    before = root.level, package.level, list(root.handlers)
    with set_up_log(3, str(tmp_path / "log")):
        pass

    assert (root.level, package.level, list(root.handlers)) == before


def test_reader_that_stands_still_loses_lines_and_holds_nobody_up() -> None:
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", MANY_LINES],
            stderr=writing,
            stdout=subprocess.PIPE,
            check=True,
            timeout=30,
        )
        os.set_blocking(reading, False)
        said = os.read(reading, 1 << 20)
    finally:
        os.close(reading)
        os.close(writing)
    assert done.stdout == b"all said\n"
    assert said.startswith(b"vmm: ")
    assert said.count(b"\n") < LINES
