"""The load guest's lines and command line, how both VMMs are started, the host's frame counter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.bench.errors import BenchError
from tools.bench.load_guest import Report, build_kernel, build_wire, read_report, step
from tools.bench.load_run import COMMANDS, QEMU, VMM, Devices, reports
from tools.bench.network import frames_received
from tools.bench.processes import launched, python

NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:     100       1    0    0    0     0          0         0      100       1    0    0
   lan: 3144806   42626    0 4000    0     0          0         0 31408000   42000    0    0
"""


def test_line_is_a_name_with_numbers() -> None:
    assert read_report("disk requests=12 cycles=345") == Report(
        "disk", {"requests": 12, "cycles": 345}
    )


def test_line_of_a_step_that_waits_is_its_name() -> None:
    assert read_report("ready receive") == Report("ready receive", {})


@pytest.mark.parametrize(
    "line",
    ["", "failed: there is no virtio device of type value=2", "disk requests", "disk requests=x"],
)
def test_line_that_reports_nothing_is_refused(line: str) -> None:
    with pytest.raises(BenchError, match="The guest said"):
        read_report(line)


def test_step_is_one_word() -> None:
    assert step("idle") == "idle"
    assert step("disk", 0, 1, 32, 4096, 500) == "disk:0:1:32:4096:500"


@pytest.mark.parametrize("name", [VMM, QEMU])
def test_command_has_the_devices_that_are_asked_for_and_no_others(name: str) -> None:
    disk, console, serial = (Path("/images", each) for each in ("disk", "console", "serial"))
    kernel, steps = Path("/load.elf"), ("first:1", "second")

    bare = " ".join(COMMANDS[name](kernel, steps, Devices()))
    full = " ".join(COMMANDS[name](kernel, steps, Devices(disk, True, "lan", console, serial)))

    assert "/load.elf" in bare
    assert "first:1 second" in bare
    for part in ("/images", "lan", "direct=on"):
        assert part not in bare
    for part in (str(disk), "lan", "direct=on", str(console), str(serial)):
        assert part in full


def say(text: str) -> tuple[str, ...]:
    """A program that says this, and stays."""
    return python("-c", f"import signal; print({text!r}, flush=True); signal.pause()")


def test_reports_come_until_the_guest_is_done() -> None:
    with launched(*say("send frames=1\nready echo\ndone")) as launch:
        assert list(reports(launch)) == [Report("send", {"frames": 1}), Report("ready echo", {})]


def test_guest_that_ends_early_is_no_measurement() -> None:
    with (
        launched(*python("-c", "print('send frames=1')")) as launch,
        pytest.raises(BenchError, match="ended before its guest did"),
    ):
        list(reports(launch))


def test_frames_are_counted_for_one_interface() -> None:
    assert frames_received(NET_DEV, "lan") == 42626
    with pytest.raises(BenchError, match="no interface wan"):
        frames_received(NET_DEV, "wan")


def test_guest_and_wire_are_built_from_their_sources(tmp_path: Path) -> None:
    for program in (build_kernel(tmp_path), build_wire(tmp_path)):
        assert program.read_bytes().startswith(b"\x7fELF")


def test_build_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"load\.elf was not built: .*[Nn]o such file"):
        build_kernel(tmp_path / "absent")
