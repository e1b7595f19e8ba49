"""``--log-format``: what each token gives, and templates that cannot be read."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.errors import ConfigError
from vmm.log import TRACE, set_up_log
from vmm.log_format import TOKENS

ours = logging.getLogger("vmm.machine.vm")

FORMS = {
    "boottime": r"\d+\.\d{6}",
    "wallclock": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z",
    "glog": r"\d{4} \d\d:\d\d:\d\d\.\d{6}",
    "year": r"20\d\d",
    "month": r"[01]\d",
    "day": r"[0-3]\d",
    "hour": r"[0-2]\d",
    "minute": r"[0-5]\d",
    "second": r"[0-6]\d",
    "micros": r"\d{6}",
    "offset": r"\+00:00",
    "localoffset": r"\+05:30",
    "level": "WARN",
    "levelchar": "W",
    "location": r"test_log_format\.py:\d+",
    "msg": "a message",
    "pid": str(os.getpid()),
    "tid": str(threading.get_native_id()),
    "thread": re.escape(threading.current_thread().name),
}


@pytest.fixture(autouse=True)
def in_india(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A zone whose time is never UTC's."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "IST-5:30")
        time.tzset()
        yield
    time.tzset()


def written(template: str, path: Path, level: int = logging.WARNING) -> str:
    with set_up_log(3, str(path), template):
        ours.log(level, "a %s", "message")
    return path.read_text()


@pytest.mark.parametrize("token", sorted(TOKENS))
def test_token_gives_what_it_stands_for(token: str, tmp_path: Path) -> None:
    form = FORMS.get(token) or FORMS[token.removeprefix("local")]

    line = written(f"<{{{token}}}>", tmp_path / "log")

    assert re.fullmatch(f"<{form}>\n", line)


@pytest.mark.parametrize(
    ("level", "text"),
    [
        (logging.CRITICAL, "E ERROR"),
        (logging.ERROR, "E ERROR"),
        (logging.INFO, "I INFO"),
        (logging.DEBUG, "D DEBUG"),
        (TRACE, "T TRACE"),
    ],
)
def test_level_has_the_name_of_the_original(level: int, text: str, tmp_path: Path) -> None:
    assert written("{levelchar} {level}", tmp_path / "log", level) == f"{text}\n"


def test_times_of_a_line_are_of_one_instant(tmp_path: Path) -> None:
    template = "{hour}:{minute}:{second}.{micros} {localhour}:{localminute}:{localsecond} {glog}"
    utc, local, _, glog = written(template, tmp_path / "log").split()

    assert utc == glog
    hours, minutes, seconds = (int(part) for part in utc.partition(".")[0].split(":"))
    there = ((hours * 60 + minutes + 330) % (24 * 60)) * 60 + seconds
    assert local == f"{there // 3600:02}:{there // 60 % 60:02}:{seconds:02}"


def test_doubled_braces_are_braces(tmp_path: Path) -> None:
    assert written("{{{level}}} }}{{", tmp_path / "log") == "{WARN} }{\n"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{nonsense}", "there is no token {nonsense}; the tokens are boottime, day"),
        ("{}", "there is no token {}"),
        ("{level", "{ at 0 stands alone; write {{"),
        ("level}", "} at 5 stands alone; write }}"),
    ],
)
def test_template_that_cannot_be_read_is_refused_before_the_file_is_touched(
    template: str, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "log"

    with pytest.raises(ConfigError, match=re.escape(text)):
        written(template, path)

    assert not path.exists()


def test_traceback_follows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with set_up_log(0, str(path), "{msg}"):
        try:
            raise ValueError("reason")
        except ValueError:
            ours.exception("message")

    assert path.read_text().startswith("message\nTraceback")
