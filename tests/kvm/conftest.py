"""Fixtures for tests that need a real /dev/kvm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kvm.bare import Machines
from vmm.errors import HostError
from vmm.kvm_cffi import Kvm


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    """An open /dev/kvm; the test is skipped where it cannot be opened."""
    try:
        opened = Kvm.open()
    except HostError as error:
        pytest.skip(f"/dev/kvm cannot be used: {error}")
    with opened:
        yield opened


@pytest.fixture
def machines(kvm: Kvm) -> Iterator[Machines]:
    """Makes bare machines and takes them down after the test."""
    with Machines(kvm) as made:
        yield made
