"""What README.md and docs/ show: their blocks of code, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

API = "http://localhost/api/v1"
SUBSTITUTION = re.compile(r"\$\((?P<command>[^()]*)\)")


class Call(NamedTuple):
    """A request that a page sends with curl; ``body`` is None where it sends none."""

    method: str
    path: str
    body: str | None


def blocks(page: Path) -> Iterator[str]:
    """Give the blocks of code of a page, fenced or indented by four, without either."""
    fenced = False
    block: list[str] = []
    for line in [*page.read_text().splitlines(), "end"]:
        is_fence = line.startswith("```")
        if not is_fence and (fenced or line.startswith("    ") or (block and not line)):
            block.append(line if fenced else line[4:])
            continue
        if any(block):
            yield "\n".join(block).strip("\n")
        block = []
        if is_fence:
            fenced = not fenced


def commands(page: Path) -> Iterator[list[str]]:
    """Give the words of each command that a page shows, and of those inside ``$(…)``."""
    for block in blocks(page):
        text = ""
        for line in block.replace("\\\n", " ").splitlines():
            text += f"{line}\n"
            try:
                words = shlex.split(SUBSTITUTION.sub("", text), comments=True)
            except ValueError:
                continue  # A quote is open: the command goes on in the next line.
            for inner in SUBSTITUTION.findall(text):
                yield shlex.split(inner)
            text = ""
            if words:
                yield words


def arguments_of(words: list[str], name: str) -> list[str] | None:
    """The arguments of a command that runs ``name`` or ``python -m name``, None for any other."""
    if words[0] == name:
        return _without_control(words[1:])
    for at in range(len(words) - 1):
        if words[at : at + 2] == ["-m", name]:
            return _without_control(words[at + 2 :])
    return None


def call_of(words: list[str]) -> Call | None:
    """The API request that a command sends, None for a command that sends none.

    Pages write ``api`` for curl with the socket, and ``$url`` for the API's address.
    """
    if words[0] not in ("curl", "api"):
        return None
    method, path, body = "GET", None, None
    for option, value in zip(words, [*words[1:], ""], strict=True):
        address = option.replace("$url", API)
        if option == "-X":
            method = value
        elif option == "-d":
            body = value
        elif address.startswith(API):
            path = address.removeprefix(API)
    return None if path is None else Call(method, path, body)


def _without_control(words: list[str]) -> list[str]:
    return [word for word in words if word != "&"]
