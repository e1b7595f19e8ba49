"""``vmm-remote`` against the real API server: requests, output, exit codes and errors."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from tests.unit.api_fixture import ABOUT, FakeOwner, serving
from tests.unit.client_calls import CONFIG
from vmm import __version__
from vmm.api.openapi import document
from vmm.client import calls
from vmm.config.disk import DiskConfig
from vmm.config.info import VmInfo, VmState
from vmm.config.vm import VmConfig
from vmm.errors import HostError, StateError, VmmError
from vmm.machine import commands
from vmm.machine.commands import Command
from vmm.remote import completion, top
from vmm.remote.__main__ import build_parser, main
from vmm.remote.commands import SUBCOMMANDS

LINES: dict[str, tuple[str, ...]] = {
    "add-device": ("path=/sys/a",),
    "add-disk": ("path=/a.raw,readonly=on",),
    "add-fs": ("tag=a,socket=/a",),
    "add-generic-vhost-user": ("socket=/a,queue_sizes=[64],device_type=26",),
    "add-net": ("tap=tap0",),
    "add-pmem": ("file=/a",),
    "add-user-device": ("socket=/a",),
    "add-vdpa": ("path=/dev/a",),
    "add-vsock": ("cid=3,socket=/a",),
    "coredump": ("/a",),
    "receive-migration": ("receiver_url=unix:/a",),
    "remove-device": ("a",),
    "resize": ("--cpus", "2"),
    "resize-disk": ("--disk", "a", "--size", "1G"),
    "resize-zone": ("--id", "a", "--size", "512M"),
    "restore": ("source_url=file:///a",),
    "send-migration": ("destination_url=unix:/a",),
    "snapshot": ("file:///a",),
}
"""What follows the subcommands that need something."""


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


async def run(capsys: pytest.CaptureFixture[str], path: str | None, words: Sequence[str]) -> Ran:
    """Run a command in this process, and give what it printed."""
    socket_words = () if path is None else ("--api-socket", path)

    def call() -> int:
        try:
            return main([*socket_words, *words])
        except SystemExit as end:
            return int(end.code or 0)

    capsys.readouterr()
    code = await trio.to_thread.run_sync(call)
    return Ran(code, *capsys.readouterr())


@pytest.mark.parametrize("subcommand", SUBCOMMANDS, ids=lambda each: each.name)
def test_subcommand_makes_the_request_of_its_name(
    subcommand: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(subcommand, type(SUBCOMMANDS[0]))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{}")))
    given = build_parser().parse_args([subcommand.name, *LINES.get(subcommand.name, ())])

    call = subcommand.make(given)

    program = "vmm" if subcommand.name in ("ping", "shutdown-vmm") else "vm"
    action = subcommand.name.removesuffix("-vmm")
    assert call.path == f"/{program}.{action}"
    assert call.path in document()["paths"]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("boot",), commands.Boot()),
        (("delete",), commands.Delete()),
        (("pause",), commands.Pause()),
        (("resume",), commands.Resume()),
        (("reboot",), commands.Reboot()),
        (("shutdown",), commands.Shutdown()),
        (("power-button",), commands.PowerButton()),
        (("nmi",), commands.Nmi()),
        (("shutdown-vmm",), commands.ShutdownVmm()),
        (("resize-disk", "--disk", "a", "--size", "1G"), commands.ResizeDisk("a", 1 << 30)),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
async def test_request_without_answer_prints_nothing(
    words: tuple[str, ...],
    command: Command,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        ran = await run(capsys, api.path, words)
        as_json = await run(capsys, api.path, ("--json", *words))

    assert ran == Ran(0, "", "")
    assert as_json == Ran(0, "null\n", "")
    assert owner.commands == [command, command]


async def test_answer_is_printed_as_it_came(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        ping = await run(capsys, api.path, ["ping"])
        info = await run(capsys, api.path, ["info"])
        counters = await run(capsys, api.path, ["counters"])

    assert json.loads(ping.out) == ABOUT.to_json()
    assert json.loads(info.out) == owner.info().to_json()
    assert counters == Ran(0, '{"_disk0":{"read_bytes":7}}\n', "")


async def test_create_sends_a_file_or_stdin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = b'{"payload": {"kernel": "/boot/vmlinuz"}}'
    path = tmp_path / "vm.json"
    path.write_bytes(body)
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        by_name = await run(capsys, api.path, ["create", str(path)])
        for words in (["create"], ["create", "-"]):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(body)))
            assert await run(capsys, api.path, words) == Ran(0, "", "")

    assert by_name == Ran(0, "", "")
    assert owner.commands == [commands.Create(CONFIG)] * 3


def test_sizes_take_suffixes_and_absent_ones_are_left_out() -> None:
    given = build_parser().parse_args(["resize", "--memory", "1G", "--balloon", "512M"])
    subcommand = next(each for each in SUBCOMMANDS if each.name == "resize")

    call = subcommand.make(given)

    assert call.body == b'{"desired_ram":1073741824,"desired_balloon":536870912}'


@pytest.mark.parametrize("word", ["unix:/tmp/a", "tcp:host:1", "receiver_url=unix:/tmp/a"])
def test_receiver_is_a_url_or_a_key(word: str) -> None:
    given = build_parser().parse_args(["receive-migration", word])
    subcommand = next(each for each in SUBCOMMANDS if each.name == "receive-migration")

    body = json.loads(subcommand.make(given).body or b"")

    assert body["receiver_url"] == word.removeprefix("receiver_url=")


def test_device_is_sent_whole_with_its_defaults() -> None:
    given = build_parser().parse_args(["add-disk", "path=/a.raw"])
    subcommand = next(each for each in SUBCOMMANDS if each.name == "add-disk")

    assert subcommand.make(given) == calls.add_disk(DiskConfig(path="/a.raw"))
    assert b'"queue_size":128' in (subcommand.make(given).body or b"")


async def test_refusal_is_told_as_ch_remote_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = HostError("open", 2, path="/dev/kvm")
    error.__cause__ = VmmError("and this below")
    async with serving(FakeOwner(error), tmp_path) as api:
        ran = await run(capsys, api.path, ["boot"])
        as_json = await run(capsys, api.path, ["--json", "boot"])

    messages = [
        "Error from API",
        "The VM could not boot",
        "open on /dev/kvm failed: No such file or directory (ENOENT)",
        "and this below",
    ]
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        "Error: vmm-remote exited with the following chain of errors:",
        "  0: http client error",
        "  1: Server responded with InternalServerError",
        *(f"  {index}: {text}" for index, text in enumerate(messages, 2)),
    ]
    assert json.loads(as_json.err) == {"status": 500, "messages": messages}


@pytest.mark.parametrize(
    ("status", "name"),
    [(400, "BadRequest"), (404, "NotFound"), (429, "TooManyRequests"), (501, "NotImplemented")],
)
async def test_statuses_have_the_names_of_ch_remote(
    status: int, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.unit.test_client_connection import answering

    path = str(tmp_path / "other.sock")
    async with answering(path, b"HTTP/1.1 %d X\r\nContent-Length: 4\r\n\r\noops" % status):
        ran = await run(capsys, path, ["ping"])

    assert ran.code == 1
    assert ran.err.splitlines()[2:] == [f"  1: Server responded with {name}", "  X: oops"]


async def test_wrong_state_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async with serving(FakeOwner(StateError("It does not run")), tmp_path) as api:
        ran = await run(capsys, api.path, ["pause"])

    assert "  1: Server responded with MethodNotAllowed\n" in ran.err
    assert ran.err.endswith("  4: It does not run\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ping"], "nobody.sock failed: No such file or directory (ENOENT); start a VMM with"),
        (["create", "/none/vm.json"], "Reading the configuration on /none/vm.json failed"),
        (["add-disk", "pth=/a"], "Unknown option: pth; the keys are"),
        (["add-fs", "socket=/a"], "tag is missing; give tag="),
        (["resize", "--memory", "1T"], "--memory 1T is no size"),
        (["resize", "--cpus", "two"], "--cpus two is no number"),
        (["resize-disk", "--disk", "a", "--size", "x"], "--size x is no size"),
    ],
)
async def test_what_cannot_be_done_is_told_with_code_1(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran = await run(capsys, str(tmp_path / "nobody.sock"), words)

    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("Error: vmm-remote exited with the following error:\n  ")
    assert text in ran.err


async def test_missing_socket_option_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    ran = await run(capsys, None, ["ping"])

    assert ran.code == 1
    assert "give --api-socket <path> before the command" in ran.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "positional arguments"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["snapshot"], "the following arguments are required: snapshot_config"),
        (["resize-disk", "--disk", "a"], "the following arguments are required: --size"),
        (["top", "--interval", "0"], "give seconds, more than 0"),
        (["completion", "tcsh"], "invalid choice: 'tcsh'"),
    ],
)
async def test_command_line_that_cannot_be_read_gives_code_2(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = await run(capsys, None, words)

    assert (ran.code, ran.out) == (2, "")
    assert text in ran.err


async def test_version_and_help_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    version = await run(capsys, None, ["--version"])
    shown = await run(capsys, None, ["--help"])

    assert version == Ran(0, f"vmm-remote v{__version__}\n", "")
    assert (shown.code, shown.err) == (0, "")
    assert all(each.name in shown.out for each in SUBCOMMANDS)


async def test_top_counts_as_often_as_it_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["top", "--interval", "0.01", "--count", "2"]
    async with serving(FakeOwner(), tmp_path) as api:
        shown = await run(capsys, api.path, words)
        as_json = await run(capsys, api.path, ["--json", *words])

    assert shown.out.count("Created, 1 vCPUs, 512M RAM") == 2
    counters = {"_disk0": {"read_bytes": {"total": 7, "increase": 0}}}
    assert [json.loads(line)["counters"] for line in as_json.out.splitlines()] == [counters] * 2


async def test_reader_that_has_seen_enough_ends_the_view_quietly(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    async with serving(FakeOwner(), tmp_path) as api:
        words = ["--api-socket", api.path, "top", "--interval", "0.001"]
        command = [sys.executable, "-m", "vmm.remote", *words]
        done = await trio.run_process(command, stdout=writer, capture_stderr=True, check=False)
    os.close(writer)

    assert (done.returncode, done.stderr) == (1, b"")


def test_view_shows_totals_and_rates() -> None:
    info = VmInfo(config=VmConfig(), state=VmState.RUNNING)
    before = {"_disk0": {"reads": 100}, "_net1": {"rx_bytes": 50}}
    after = {"_disk0": {"reads": 300}, "_net1": {"rx_bytes": 20}, "_rng2": {"bytes": 4}}

    lines = top.view(info, before, after, 2.0).splitlines()

    assert lines[0] == "Running, 1 vCPUs, 512M RAM"
    assert [line.split() for line in lines[3:]] == [
        ["_disk0", "reads", "300", "100.0"],
        ["_net1", "rx_bytes", "20", "10.0"],  # It began anew.
        ["_rng2", "bytes", "4", "2.0"],
    ]


def complete(words: Sequence[str], script: Path) -> list[str]:
    """What bash offers for the last of the words."""
    quoted = " ".join(f"'{word}'" for word in words)
    code = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1};"
        ' compopt() { :; }; _vmm_remote; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_and_keys(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(completion.script("bash"))

    assert complete(["vmm-remote", "resi"], script) == ["resize", "resize-disk", "resize-zone"]
    assert complete(["vmm-remote", "--api-socket", "/a", "po"], script) == ["power-button"]
    assert complete(["vmm-remote", "add-disk", "rea"], script) == ["readonly="]
    assert complete(["vmm-remote", "completion", "z"], script) == ["zsh"]
    assert complete(["vmm-remote", "--api-socket", ""], script) == []


@pytest.mark.parametrize("shell", completion.SHELLS)
async def test_script_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = await run(capsys, None, ["completion", shell])

    assert (ran.code, ran.err) == (0, "")
    for name in (*(each.name for each in SUBCOMMANDS), "completion", "top"):
        assert name in ran.out
    program = shutil.which(shell)
    if program is not None:
        checked = await trio.run_process(
            [program, "-n"], stdin=ran.out.encode(), capture_stdout=True, capture_stderr=True
        )
        assert (checked.returncode, checked.stderr) == (0, b"")
