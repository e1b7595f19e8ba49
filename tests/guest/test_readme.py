"""What README.md tells its reader to type works, from the command line and over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, QUICK
from tests.unit.documents import ROOT, Call, arguments_of, call_of, commands
from tools.images.kernels import Kernel
from vmm.testing.process import VmmProcess

pytestmark = pytest.mark.guest

README = ROOT / "README.md"


@pytest.fixture
def words(place: Path, linux: Kernel, minimal: Path) -> list[list[str]]:
    """The commands of the README, with what the shell and this test put in them."""
    meant = {
        "$KERNEL": str(linux.vmlinuz),
        "$INITRAMFS": str(minimal),
        "/tmp/serial.log": str(place / "serial.log"),
        "console=ttyS0 panic=-1": QUICK,
    }

    def replaced(word: str) -> str:
        for name, value in meant.items():
            word = word.replace(name, value)
        return word

    return [[replaced(word) for word in command] for command in commands(README)]


def calls(words: list[list[str]]) -> Iterator[Call]:
    for command in words:
        call = call_of(command)
        if call is not None:
            yield call


async def test_command_line_of_the_readme_boots_its_guest(
    place: Path, words: list[list[str]]
) -> None:
    shown = (arguments_of(command, "vmm") for command in words)
    (arguments,) = (each for each in shown if each is not None and "--kernel" in each)

    async with VmmProcess.start(place, *arguments) as vmm:
        at = await vmm.wait_for("GUEST-READY", BOOT_S)
        await vmm.wait_for("cpus=2", BOOT_S, after=at)

        assert await vmm.stop() == 0


async def test_requests_of_the_readme_boot_its_guest_and_power_it_off(
    place: Path, words: list[list[str]]
) -> None:
    async with VmmProcess.start(place, api=True) as vmm:
        await vmm.wait_until_served(BOOT_S)
        for call in calls(words):
            name = call.path.removeprefix("/")
            if name == "vm.power-button":
                await wait_for_text(place / "serial.log", "GUEST-READY")
            body = None if call.body is None else json.loads(call.body)

            reply = await vmm.api(call.method, name, body)

            assert reply.status in (200, 204), (call, reply.body)

        assert await vmm.wait(60) == 0


async def wait_for_text(path: Path, text: str) -> None:
    """Wait until a file that grows holds a text. Raises: trio.TooSlowError."""
    with trio.fail_after(BOOT_S):
        # A file that grows tells nobody.
        while text not in await trio.Path(path).read_text(errors="replace"):  # noqa: ASYNC110
            await trio.sleep(0.2)
