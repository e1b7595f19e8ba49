"""VMs that cannot be: refused in clear words, by exit code or status, and harming nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import (
    SECONDS,
    SMALL,
    machine,
    resources,
    run_to_its_end,
    running,
    short_folder,
)
from tests.kvm.guests.refusals import REFUSALS, Refusal, absent_sections, check_words
from vmm.testing.process import VmmProcess

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder


@pytest.mark.parametrize("name", REFUSALS)
async def test_command_line_says_why_and_exits_with_1(place: Path, name: str) -> None:
    refusal = REFUSALS[name](place)
    memory = () if "--memory" in refusal.arguments else ("--memory", "size=64M")
    api = ("--api-socket", str(place / "api.sock"))

    ended = await run_to_its_end(*refusal.arguments, *memory, "--console", "off", *api)

    assert ended.returncode == 1
    text = ended.stderr.decode()
    check_words(text, refusal.words)
    assert "Traceback" not in text
    assert not any(name.startswith("api.sock") for name in os.listdir(place))


async def test_descriptor_that_is_no_tap_is_refused_by_its_number(place: Path) -> None:
    arguments = ("--kernel", str(write_kernel(place, programs.HALT)), *SMALL)
    reader, writer = os.pipe()
    os.close(writer)
    for fd, problem in ((reader, "which is no tap"), (900, "which is not open")):
        net = ("--net", f"fd={fd}")
        async with VmmProcess.start(place, *arguments, *net, pass_fds=(reader,)) as vmm:
            assert await vmm.wait(SECONDS) == 1
        words = ("fds (--net fd=…)", f"descriptor {fd}", problem, "pass an open queue of a tap")
        check_words(vmm.errors.decode(), words)
    os.close(reader)


async def test_command_line_with_absent_sections_names_all_of_them(place: Path) -> None:
    sections = absent_sections(place)
    arguments = ["--kernel", str(write_kernel(place, programs.HALT)), "--console", "off"]
    for refusal in sections.values():
        arguments += refusal.arguments[2:]

    ended = await run_to_its_end(*arguments, "--memory", "size=64M,shared=on")

    assert ended.returncode == 1
    for name in sections:
        assert f"{name} (" in ended.stderr.decode()


async def test_log_format_with_an_unknown_token_ends_the_start(place: Path) -> None:
    ended = await run_to_its_end("--api-socket", str(place / "api.sock"), "--log-format", "{oops}")

    assert ended.returncode == 1
    assert ended.stderr.startswith(b"Error: trio-vmm exited with the following error:\n")
    assert b"there is no token {oops}" in ended.stderr
    assert not (place / "api.sock").exists()


async def test_api_says_why_with_its_status_and_goes_on_serving(place: Path) -> None:
    refusals = [make(place) for make in REFUSALS.values()]
    async with running(place) as vmm:
        idle = resources(vmm)
        await check_all(vmm, refusals, idle)
        await check_all(vmm, absent_sections(place).values(), idle)

        # And a good one after all of these.
        await vmm.put("vm.create", machine(write_kernel(place, programs.SPIN)))
        await vmm.put("vm.boot")
        assert (await vmm.info())["state"] == "Running"


async def check_all(vmm: VmmProcess, refusals: Iterable[Refusal], descriptors: list[str]) -> None:
    for refusal in refusals:
        await vmm.put("vm.create", refusal.config)
        reply = await vmm.api("PUT", "vm.boot")
        assert reply.status == refusal.status, reply.body
        texts = json.loads(reply.body)
        assert all(isinstance(text, str) for text in texts)
        check_words(" | ".join(texts), refusal.words)
        assert (await vmm.info())["state"] == "Created"
        await vmm.put("vm.delete")
        assert (await vmm.api("GET", "vmm.ping")).status == 200
    assert resources(vmm) == descriptors
