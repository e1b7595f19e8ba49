"""What tests need that start two nested hosts themselves, and so run on this host."""

from __future__ import annotations

import os

import pytest

from tools.nested_host.launch import build
from tools.nested_host.machine import Machine
from tools.nested_host.pytest_bridge import HOST_KIB, room_for_hosts

RETRIED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Have a place for what was tried once more."""
    config.stash[RETRIED] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was tried once more, and why."""
    for said in config.stash[RETRIED]:
        terminalreporter.write_line("two nested hosts were started once more:", yellow=True)
        for line in said.splitlines():
            terminalreporter.write_line(f"    {line}")


@pytest.fixture
def retried(request: pytest.FixtureRequest) -> list[str]:
    """Where a test says why it began again."""
    return request.config.stash[RETRIED]


@pytest.fixture(scope="session")
def built() -> Machine:
    """The machine that both hosts are."""
    if "TRIO_VMM_INSIDE_NESTED_HOST" in os.environ:
        pytest.skip("no nested host starts in a nested host")
    room = room_for_hosts()
    if room < 2:
        pytest.skip(
            f"two nested hosts need 2 processors and {2 * HOST_KIB >> 20} GiB of free memory; "
            f"here is room for {room}"
        )
    return build()
