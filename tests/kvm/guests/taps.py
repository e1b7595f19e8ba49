"""Taps for tests that give descriptors of them away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from vmm.errors import HostError
from vmm.net.tap import Tap, open_tap
from vmm.testing.namespace import network_namespace


@contextmanager
def own_taps(count: int) -> Iterator[list[Tap]]:
    """Taps in a network of the test's own; it is skipped where there are none to be had."""
    with ExitStack() as stack:
        try:
            stack.enter_context(network_namespace())
            made = [stack.enter_context(open_tap(f"lan{index}", 1)) for index in range(count)]
        except HostError as error:
            pytest.skip(f"taps cannot be made here: {error}")
        yield made
