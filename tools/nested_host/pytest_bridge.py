"""pytest: run the tests marked `guest` in the nested host where this machine's KVM cannot.

A conftest.py takes part with `from tools.nested_host.pytest_bridge import pytest_configure`. The
tests are collected here as ever and dealt out to one or two nested hosts, as many as this machine
has room for. In each a pytest runs its share, and the reports are replayed here in the order of
the tests, so that each test has its own line, duration and output.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tools.nested_host.inner_pytest import InnerPytest, InnerPytestDied
from tools.nested_host.probe import kvm_runs_linux
from vmm.testing.stall import Stalled

PLUGIN: Final = "nested-host-bridge"
MARKER: Final = "guest"
STALLED: Final = f"{Stalled.__module__}.{Stalled.__qualname__}"
ATTEMPTS: Final = 4  # at one test; an emulated host may die under a guest that runs firmware
MAX_DEATHS: Final = 8  # of the nested host, in one session
MOST_HOSTS: Final = 2  # at once; each emulates two processors, mostly one at a time
HOST_KIB: Final = 8 << 20  # of memory that must be free for each
TOLD_LINES: Final = 6  # of what was said of such a death, in the summary


def pytest_configure(config: pytest.Config) -> None:
    """Take part in a session, once, if its guests cannot run on this machine itself."""
    if config.pluginmanager.has_plugin(PLUGIN):
        return
    answer = kvm_runs_linux()
    if not answer.runs:
        config.pluginmanager.register(GuestBridge(config, answer.reason), PLUGIN)


class GuestBridge:
    """Replays the tests that run in the nested host."""

    def __init__(self, config: pytest.Config, reason: str) -> None:
        self._config = config
        self._reason = reason
        self._shares: list[list[str]] = []  # the tests that each nested host runs, in order
        self._inner: dict[int, InnerPytest] = {}  # by the number of its share
        self._broken: str | None = None  # why no test can run at all
        self._replayed = 0
        self._stalls: list[str] = []  # the tests in which a guest stood still, tried once more
        # The test each death of the nested host was met in, and what was said of it.
        self._deaths: list[tuple[str, str]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Replay a guest test instead of running it."""
        if item.get_closest_marker(MARKER) is None:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports_of(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        self._replayed += 1
        return True

    def _reports_of(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """Wait for the reports of a test; if the host dies it is restored, and asked again."""
        number = self._share_of(item)
        for _ in range(ATTEMPTS):
            if self._broken is not None:
                yield failure(item, self._broken)
                return
            if len(self._deaths) >= MAX_DEATHS:
                break
            try:
                inner = self._started(number, item.nodeid)
                reports = [self._restore(data) for data in inner.reports_of(item.nodeid)]
            except InnerPytestDied as death:
                self._stop(number)
                if not death.is_host:
                    if not death.has_reported:
                        self._broken = str(death)
                    yield failure(item, str(death))
                    return
                said = str(death)
                self._deaths.append((item.nodeid, said))
            else:
                if item.nodeid not in self._stalls and any(map(has_stalled, reports)):
                    self._stalls.append(item.nodeid)
                    self._stop(number)
                    continue
                yield from reports
                return
        else:
            yield failure(item, f"The nested host died under this test {ATTEMPTS} times.\n{said}")
            return
        yield failure(item, f"The nested host died {MAX_DEATHS} times; no more tests are tried.")

    def _restore(self, data: dict[str, Any]) -> pytest.TestReport:
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
        assert isinstance(report, pytest.TestReport)
        if isinstance(report.longrepr, list):
            report.longrepr = tuple(report.longrepr)  # where a test was skipped; JSON has no tuples
        return report

    def _share_of(self, item: pytest.Item) -> int:
        """Which share a test is of; the first that asks has all dealt out and begun."""
        if not self._shares:
            self._shares = dealt(guest_items(item.session))
            for number, share in enumerate(self._shares):
                self._started(number, share[0])
        return next(n for n, share in enumerate(self._shares) if item.nodeid in share)

    def _started(self, number: int, first: str) -> InnerPytest:
        """The pytest that runs a share, started anew from a test on where it has ended."""
        if number not in self._inner:
            share = self._shares[number]
            self._inner[number] = InnerPytest(self._config, share[share.index(first) :])
        return self._inner[number]

    def _stop(self, number: int) -> None:
        if number in self._inner:
            self._inner.pop(number).stop()

    def pytest_sessionfinish(self) -> None:
        """End the nested hosts, however the session ended."""
        for number in list(self._inner):
            self._stop(number)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what ran where, and what had to be tried again."""
        if self._replayed:
            terminalreporter.write_line(
                f"{self._replayed} guest tests ran in the nested host, because {self._reason}"
            )
        for nodeid in self._stalls:
            terminalreporter.write_line(
                f"a guest stood still during {nodeid}, which was tried once more", yellow=True
            )
        for nodeid, said in self._deaths:
            terminalreporter.write_line(f"the nested host died during {nodeid}", yellow=True)
            for line in causes(said):
                terminalreporter.write_line(f"    {line}")


def causes(said: str) -> list[str]:
    """What was said of a death, but for the messages of kernels that went before it."""
    lines = (line for line in said.splitlines() if line and not line.startswith("["))
    return list(lines)[-TOLD_LINES:]


def has_stalled(report: pytest.TestReport) -> bool:
    """Whether a test failed because what it waited for did not come.

    An emulated host stands still now and then, with whatever runs in it. Such a test is tried once
    more and named in the summary; one that fails for any other reason is not.
    """
    return report.failed and STALLED in report.longreprtext


def guest_items(session: pytest.Session) -> list[str]:
    """List the node ids of all guest tests, in order."""
    items = (item for item in session.items if item.get_closest_marker(MARKER) is not None)
    return [item.nodeid for item in items]


def dealt(tests: list[str]) -> list[list[str]]:
    """Deal tests out, one by one, to as many nested hosts as there is room for; none is empty."""
    hosts = max(1, min(MOST_HOSTS, room_for_hosts(), len(tests)))
    return [tests[number::hosts] for number in range(hosts)]


def room_for_hosts() -> int:
    """How many nested hosts this machine has processors and free memory for."""
    available = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    return min(os.cpu_count() or 1, int(available[1]) // HOST_KIB if available else 1)


def failure(item: pytest.Item, text: str) -> pytest.TestReport:
    """Return the report of a test that could not be run."""
    return pytest.TestReport(
        item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "failed", text, "call"
    )
