"""The form of the log's lines that ``--log-format`` asks for: a text with tokens in braces.

Spec: Cloud Hypervisor command line, ``--log-format``; its documentation of logging, format.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from typing import Final

from vmm.errors import ConfigError

LEVELS: Final = {"WARNING": "WARN", "CRITICAL": "ERROR"}
"""Levels that the original has under other names."""

_PIECE = re.compile(r"\{\{|\}\}|\{(?P<token>[^{}]*)\}|[{}]|[^{}]+")


class Line:
    """What the tokens of one line are made from; all its times are of one instant."""

    def __init__(self, record: logging.LogRecord) -> None:
        self.record = record

    @cached_property
    def utc(self) -> datetime:
        return datetime.fromtimestamp(self.record.created, UTC)

    @cached_property
    def local(self) -> datetime:
        return self.utc.astimezone()

    @property
    def level(self) -> str:
        return LEVELS.get(self.record.levelname, self.record.levelname)


Write = Callable[[Line], str]

_DATES: Final = {
    "year": "%Y",
    "month": "%m",
    "day": "%d",
    "hour": "%H",
    "minute": "%M",
    "second": "%S",
    "micros": "%f",
    "glog": "%m%d %H:%M:%S.%f",
}


def _in_utc(form: str) -> Write:
    return lambda line: line.utc.strftime(form)


def _in_local_time(form: str) -> Write:
    return lambda line: line.local.strftime(form)


TOKENS: Final[dict[str, Write]] = {
    "boottime": lambda line: f"{line.record.relativeCreated / 1000:.6f}",
    "wallclock": _in_utc("%Y-%m-%dT%H:%M:%S.%fZ"),
    "thread": lambda line: str(line.record.__dict__["task"]),
    "level": lambda line: line.level,
    "levelchar": lambda line: line.level[0],
    "location": lambda line: f"{line.record.filename}:{line.record.lineno}",
    "msg": lambda line: line.record.message,
    "pid": lambda line: str(line.record.process),
    "tid": lambda _: str(threading.get_native_id()),
    "offset": lambda line: line.utc.isoformat()[-6:],
    "localoffset": lambda line: line.local.isoformat()[-6:],
    **{name: _in_utc(form) for name, form in _DATES.items()},
    **{f"local{name}": _in_local_time(form) for name, form in _DATES.items()},
}


class TemplateFormatter(logging.Formatter):
    """Writes records by a template.

    Raises: ConfigError, the caller's fault: a token that is unknown, or a brace that stands alone.
    """

    def __init__(self, template: str) -> None:
        super().__init__()
        self._writers = list(_writers(template))

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = Line(record)
        return "".join(write(line) for write in self._writers)


def _writers(template: str) -> Iterator[Write]:
    for piece in _PIECE.finditer(template):
        text, token = piece[0], piece["token"]
        if token is None:
            if text in ("{", "}"):
                raise ConfigError(
                    f"--log-format {template}: {text} at {piece.start()} stands alone;"
                    f" write {text * 2} for the character itself"
                )
            yield _constant({"{{": "{", "}}": "}"}.get(text, text))
        elif token in TOKENS:
            yield TOKENS[token]
        else:
            raise ConfigError(
                f"--log-format {template}: there is no token {{{token}}}; the tokens are"
                f" {', '.join(sorted(TOKENS))}"
            )


def _constant(text: str) -> Write:
    return lambda _: text
