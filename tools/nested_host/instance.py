"""A nested host that stays up: where it keeps its files, and how it is found again."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.nested_host.errors import NestedHostError
from tools.nested_host.shares import Shares

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


@dataclass(frozen=True)
class Instance:
    """A named host; two names are two hosts, side by side."""

    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise NestedHostError(
                f"{self.name!r} is no name for a host: up to 32 letters, digits, '.', '_', '-'."
            )

    @property
    def run_dir(self) -> Path:
        """Return the folder of its sockets and logs; short, as socket paths must be."""
        return _base() / self.name

    @property
    def control(self) -> Path:
        """Return the socket that commands are sent to."""
        return self.run_dir / "control.sock"

    @property
    def owner_pid(self) -> Path:
        """Return the file with the process id of its owner."""
        return self.run_dir / "owner.pid"

    def is_up(self) -> bool:
        """Tell whether it runs."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.control))
            except OSError:
                return False
        return True

    def prepare(self, shares: Shares) -> None:
        """Make its folder anew. Raises NestedHostError: it is up already (caller)."""
        if self.is_up():
            raise NestedHostError(f"The nested host {self.name!r} is up already.")
        self.remove()
        self.run_dir.mkdir(mode=0o700, parents=True)
        facts = {"checkout": str(shares.checkout), "results": str(shares.results)}
        (self.run_dir / "shares.json").write_text(json.dumps(facts))

    def shares(self) -> Shares:
        """Return what it shares. Raises NestedHostError: it is not up (caller)."""
        try:
            facts = json.loads((self.run_dir / "shares.json").read_text())
        except FileNotFoundError:
            raise self.is_down() from None
        return Shares(Path(facts["checkout"]), Path(facts["results"]))

    def is_down(self) -> NestedHostError:
        """Return the error that says it does not run."""
        return NestedHostError(
            f"No nested host {self.name!r} is up; start it with"
            f" 'python -m tools.nested_host up --name {self.name}'."
        )

    def remove(self) -> None:
        """Remove its folder."""
        shutil.rmtree(self.run_dir, ignore_errors=True)


def instances() -> Iterator[Instance]:
    """Yield the hosts that have a folder, up or not."""
    for folder in sorted(_base().glob("*")):
        yield Instance(folder.name)


def _base() -> Path:
    return Path(tempfile.gettempdir()) / f"nested-hosts-{os.getuid()}"
