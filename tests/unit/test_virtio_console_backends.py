"""What the virtio console needs of its back ends: who has the keyboard, and the terminal's size."""

from __future__ import annotations

import os
import signal
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from vmm.config.vm import VmConfig
from vmm.console import SizedBackend, WindowSize, open_backend
from vmm.console.terminal import open_tty
from vmm.machine.consoles import open_consoles

PATIENCE_S = 10


@pytest.fixture
def terminal() -> Iterator[int]:
    user, shell = os.openpty()
    termios.tcsetwinsize(shell, (24, 80))
    yield shell
    os.close(user)
    os.close(shell)


async def next_change(backend: SizedBackend, act: Callable[[], None]) -> None:
    """Wait until a back end reports a change of its size that ``act`` causes."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.watch_size, nursery.cancel_scope.cancel)
            await trio.testing.wait_all_tasks_blocked()
            act()


async def test_tty_reports_the_signal_of_a_resized_terminal(terminal: int) -> None:
    async with open_tty("console", stdin=terminal, stdout=terminal) as tty:

        def resize() -> None:
            termios.tcsetwinsize(terminal, (50, 132))
            # The kernel sends it to who has the terminal in the foreground: not to this test.
            signal.raise_signal(signal.SIGWINCH)

        await next_change(tty, resize)

        assert tty.size == WindowSize(50, 132)
    assert signal.getsignal(signal.SIGWINCH) is signal.SIG_DFL


async def test_pty_reports_a_size_that_its_opener_sets() -> None:
    async with open_backend("Pty", name="console") as backend:
        assert backend.path is not None
        slave = os.open(backend.path, os.O_RDWR | os.O_NOCTTY)
        try:
            await next_change(backend, lambda: termios.tcsetwinsize(slave, (50, 132)))
        finally:
            os.close(slave)

        assert backend.size == WindowSize(50, 132)


@pytest.mark.parametrize("mode", ["Null", "File", "Socket"])
async def test_back_end_without_a_terminal_reports_no_change(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes: list[None] = []
    async with open_backend(mode, name="console", file="out", socket="sock") as backend:
        with trio.move_on_after(0.01):
            await backend.watch_size(lambda: changes.append(None))

        assert backend.size is None
    assert changes == []


async def test_tty_without_the_keyboard_leaves_it_alone(terminal: int) -> None:
    before = termios.tcgetattr(terminal)

    async with open_tty("console", has_keyboard=False, stdin=terminal, stdout=terminal) as tty:
        with trio.move_on_after(0.02) as waiting:
            await tty.read()

        assert waiting.cancelled_caught
        assert termios.tcgetattr(terminal) == before


@pytest.fixture
def keyboards(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Which consoles in mode Tty were opened, and whether with the keyboard."""
    from vmm.machine import consoles

    asked: dict[str, bool] = {}

    def recorded(
        mode: str,
        *,
        name: str,
        file: str | None = None,
        socket: str | None = None,
        has_keyboard: bool = True,
        has_socket: bool = True,
    ) -> object:
        if mode == "Tty":
            asked[name] = has_keyboard
        return open_backend("Null", name=name)

    monkeypatch.setattr(consoles, "open_backend", recorded)
    return asked


@pytest.mark.parametrize(
    ("serial", "console", "expected"),
    [
        ("Null", "Tty", {"console": True}),
        ("Tty", "Tty", {"serial": True, "console": False}),
        ("Tty", "Off", {"serial": True}),
    ],
)
async def test_keyboard_is_the_serial_port_s_if_that_is_a_terminal(
    keyboards: dict[str, bool], serial: str, console: str, expected: dict[str, bool]
) -> None:
    config = VmConfig.model_validate({"serial": {"mode": serial}, "console": {"mode": console}})

    async with open_consoles(config):
        assert keyboards == {**expected, "firmware's debug port": False}


async def test_path_of_the_console_s_pty_is_described() -> None:
    config = VmConfig.model_validate({"console": {"mode": "Pty"}})

    async with open_consoles(config) as consoles:
        described = consoles.described_in(config)

        assert described.console.file == consoles.console.path
        assert described.console.file is not None
