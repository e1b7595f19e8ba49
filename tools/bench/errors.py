"""What keeps a benchmark from measuring."""

from __future__ import annotations


class BenchError(Exception):
    """A contender cannot run here, or did not do what it is measured by; one sentence."""
