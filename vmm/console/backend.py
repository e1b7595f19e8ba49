"""What a console device sees of the host's side of its console."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol


class WindowSize(NamedTuple):
    """The size of a terminal, in characters."""

    rows: int
    columns: int


class Backend(Protocol):
    """One console's other side: a terminal, a file, a pty, a socket, or nothing.

    At most one task reads at a time; each write is taken whole before any waiting. No call raises
    because of what the other side does: a full disk or a closed terminal costs output, never the
    guest.
    """

    @property
    def path(self) -> str | None:
        """The path that opening chose, for ``vm.info``: that of a new pty's slave, else None."""

    @property
    def size(self) -> WindowSize | None:
        """The terminal's size now; None where there is no terminal, or it does not know."""

    async def write(self, data: bytes) -> None:
        """Hand the guest's output over; wait while the other side is slow.

        The data is taken at once and in order. With nobody on the other side it is kept up to a
        limit or dropped, as the back end's own description says, and the call returns.

        Cancel: what was not yet handed over is kept, and goes first with the next write.
        """

    async def read(self) -> bytes:
        """Wait for input to the guest and return it: at least one byte.

        A back end without input, or whose input has ended, waits for ever.

        Cancel: no input is lost.
        """


class SizedBackend(Backend, Protocol):
    """A back end that also tells when its terminal's size changes."""

    async def watch_size(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever ``size`` may be another, until cancelled."""
