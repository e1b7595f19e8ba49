"""What goes wrong with the nested host."""

from __future__ import annotations


class NestedHostError(Exception):
    """The nested host cannot be made, started or used; the text says why and what to do."""


class NestedHostDied(NestedHostError):
    """The machine ended, or its kernel broke, while it was in use; `is_oops` tells which."""

    def __init__(self, message: str, *, is_oops: bool) -> None:
        super().__init__(message)
        self.is_oops = is_oops
