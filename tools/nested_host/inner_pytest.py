"""The pytest that runs in the nested host: both ends of the stream of its reports.

As a plug-in inside (`-p tools.nested_host.inner_pytest`) it writes each report as a line of JSON to
what was standard output; all else goes to standard error. Outside, `InnerPytest` starts it there
and reads the lines.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

import pytest

STALL_S: Final = 1200  # without any report: longer than the longest test may take
HOST_DIED: Final = 125  # the exit code of the tool when it is the host that failed
PLUGIN: Final = "tools.nested_host.inner_pytest"
TOOL: Final = (sys.executable, "-m", "tools.nested_host")
WARM_PROJECT: Final = (sys.executable, "-m", "nested_inside.project", "vmm")
TAIL_LINES: Final = 40


class ReportWriter:
    """Inside: writes the reports."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._config: pytest.Config | None = None
        self._warm: subprocess.Popen[bytes] | None = None

    def pytest_configure(self, config: pytest.Config) -> None:
        """Keep the configuration, which knows how reports are serialised."""
        self._config = config

    def pytest_sessionstart(self) -> None:
        """Have the VMM imported beside the first tests, for those that start it later."""
        self._warm = subprocess.Popen(WARM_PROJECT)

    def pytest_sessionfinish(self) -> None:
        """End it."""
        if self._warm is not None:
            self._warm.kill()
            self._warm.wait()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the report of one phase of a test."""
        assert self._config is not None
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._stream.write(json.dumps(data) + "\n")
        self._stream.flush()


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Inside: set the stream of reports apart.

    There are no options to add, but this hook alone runs before pytest captures standard output.
    """
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pluginmanager.register(ReportWriter(stream), "report-writer")


class InnerPytestDied(Exception):
    """No more reports come.

    `is_host` tells that the nested host is to blame, `has_reported` that there were some before.
    """

    def __init__(self, message: str, *, is_host: bool, has_reported: bool) -> None:
        super().__init__(message)
        self.is_host = is_host
        self.has_reported = has_reported


class InnerPytest:
    """Outside: the running inner pytest."""

    def __init__(self, config: pytest.Config, nodeids: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nested-pytest-")
        folder = Path(self._folder.name)
        (folder / "nodeids").write_text("".join(f"{nodeid}\n" for nodeid in nodeids))
        self._log = folder / "stderr"
        root = config.rootpath
        options = [
            "-p", PLUGIN, "-p", "no:cacheprovider", f"--rootdir={root}",
            f"--tb={config.getoption('tbstyle')}",
        ]  # fmt: skip
        command = ["python", "-m", "pytest", *options, f"@{folder / 'nodeids'}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*TOOL, "run", "--results", folder, "--", *command],
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is ours; we end it in order
            )
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        self._buffer = b""
        self._has_reported = False

    def reports_of(self, nodeid: str) -> list[dict[str, Any]]:
        """Wait for all reports of the next test. Raises InnerPytestDied: they do not come."""
        reports = []
        while True:
            report = json.loads(self._read_line())
            self._has_reported = True
            if report["nodeid"] != nodeid:
                text = f"A report for {report['nodeid']} came where {nodeid} was due."
                raise self._died(text, is_host=False)
            reports.append(report)
            if report["when"] == "teardown":
                return reports

    def _read_line(self) -> bytes:
        while b"\n" not in self._buffer:
            if not select.select([self._stdout], [], [], STALL_S)[0]:
                raise self._died(f"No test ended within {STALL_S} s.", is_host=True)
            data = os.read(self._stdout.fileno(), 1 << 16)
            if not data:
                code = self._process.wait()
                text = f"The pytest in the nested host ended with {code}."
                raise self._died(text, is_host=code == HOST_DIED)
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self, text: str, *, is_host: bool) -> InnerPytestDied:
        message = f"{text}\n{self._said()}"
        return InnerPytestDied(message, is_host=is_host, has_reported=self._has_reported)

    def _said(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def stop(self) -> None:
        """End it and everything of it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        self._stdout.close()
        self._folder.cleanup()
