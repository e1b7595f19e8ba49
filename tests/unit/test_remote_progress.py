"""What ``vmm-remote`` tells on a terminal while work takes long."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.unit.api_fixture import FakeOwner, serving
from vmm.errors import HostError
from vmm.remote import progress
from vmm.remote.__main__ import main


async def test_work_that_takes_long_is_told_of_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = trio.Event()
    core = tmp_path / "core"
    core.write_bytes(bytes(3 << 20))
    owner = FakeOwner(gate=told)
    terminal, other = os.openpty()

    def say() -> int:
        monkeypatch.setattr(progress, "FIRST_S", 0.01)
        with open(other, "w", buffering=1) as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            return main(["--api-socket", api.path, "coredump", f"file://{core}"])

    async with serving(owner, tmp_path) as api, trio.open_nursery() as nursery:
        codes: list[int] = []

        async def run_it() -> None:
            codes.append(await trio.to_thread.run_sync(say))

        nursery.start_soon(run_it)
        text = b""
        while b"MiB" not in text:
            text += await trio.to_thread.run_sync(os.read, terminal, 1000)
        told.set()
    os.close(terminal)

    assert b"coredump: 0 s, 3 MiB written of at most 512 MiB" in text
    assert codes == [0]
    assert capsys.readouterr().out == ""


async def test_work_that_fails_is_told_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, other = os.openpty()

    def say() -> int:
        with open(other, "w", buffering=1) as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            return main(["--api-socket", api.path, "snapshot", "file:///s"])

    async with serving(FakeOwner(error=HostError("mkdir", 17, path="/s")), tmp_path) as api:
        assert await trio.to_thread.run_sync(say) == 1

    assert b"mkdir on /s failed" in _rest_of(terminal)


def _rest_of(terminal: int) -> bytes:
    """What nobody has read of a terminal whose other end is closed; it is closed then, too."""
    text = b""
    with suppress(OSError):  # That is its end.
        while more := os.read(terminal, 1000):
            text += more
    os.close(terminal)
    return text


async def test_interrupt_ends_it_quietly(tmp_path: Path) -> None:
    terminal, other = os.openpty()
    words = ["-m", "vmm.remote", "--api-socket", "", "coredump", f"file://{tmp_path}/core"]

    async with (
        serving(FakeOwner(gate=trio.Event()), tmp_path) as api,
        trio.open_nursery() as nursery,
    ):
        words[3] = api.path
        process: trio.Process = await nursery.start(
            partial(trio.run_process, [sys.executable, *words], stderr=other, check=False)
        )
        text = b""
        while b"written" not in text:
            text += await trio.to_thread.run_sync(os.read, terminal, 1000)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        nursery.cancel_scope.cancel()
    os.close(other)
    text += _rest_of(terminal)

    assert b"Traceback" not in text
    assert text.endswith(progress.WIPE.encode())
