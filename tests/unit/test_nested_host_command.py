"""How a Python command line is understood, and how a fork ends, in the nested host."""

from __future__ import annotations

import signal
import sys

import pytest

from tools.nested_host.inside.command import PythonCall, parse_python, run_to_exit_code


@pytest.mark.parametrize(
    ("argv", "call"),
    [
        (["python", "-m", "vmm", "--version"], PythonCall("-m", "vmm", ["--version"], False)),
        (["/x/.venv/bin/python3", "-u", "-c", "1"], PythonCall("-c", "1", [], True)),
        (["python", "script.py", "-x"], PythonCall("", "script.py", ["-x"], False)),
        (["pytest", "-q"], PythonCall("-m", "pytest", ["-q"], False)),
    ],
)
def test_python_command_line_is_served_by_a_fork(argv: list[str], call: PythonCall) -> None:
    assert parse_python(argv) == call


@pytest.mark.parametrize(
    "argv",
    [
        ["sh", "-c", "true"],
        ["python"],
        ["python", "-X", "importtime", "-m", "vmm"],
        ["python", "-"],
    ],
)
def test_other_command_line_gets_a_process_of_its_own(argv: list[str]) -> None:
    assert parse_python(argv) is None


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (SystemExit(), 0),
        (SystemExit(3), 3),
        (SystemExit(256), 0),
        (SystemExit("no"), 1),
        (ZeroDivisionError(), 1),
        (KeyboardInterrupt(), -signal.SIGINT),
    ],
)
def test_exception_ends_a_fork_as_it_ends_an_interpreter(
    raised: BaseException, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        raise raised

    assert run_to_exit_code(body) == code


def test_traceback_of_a_fork_shows_the_command_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []

    def hook(kind: type[BaseException], error: BaseException, traceback: object) -> None:
        shown.append(error.__traceback__.tb_frame.f_code.co_name)  # type: ignore[union-attr]

    monkeypatch.setattr(sys, "excepthook", hook)

    def body() -> None:
        raise ValueError("x")

    run_to_exit_code(body)

    assert shown == ["body"]
