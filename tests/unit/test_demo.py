"""The demonstration passes only on a console that has every proof, and a clean end."""

from __future__ import annotations

import subprocess

import pytest

from tools import demo

ANSWERS = """\
guest# uname -srm
Linux 6.12.95+deb12-cloud-amd64 x86_64
guest# dmesg | grep -i 'hypervisor detected'
[    0.000000] Hypervisor detected: KVM
guest# cat /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name
Cloud Hypervisor
cloud-hypervisor
guest# grep -o -m 1 -w hypervisor /proc/cpuinfo
hypervisor
guest# nproc
1
guest# grep MemTotal /proc/meminfo
MemTotal:         475152 kB
guest# lspci
00:00.0 Host bridge: Intel Corporation Device 0d57
"""
CONSOLE = f"GUEST-READY 3.3\nGUEST-RUN-BEGIN\n{ANSWERS}GUEST-RUN-END 0\nGUEST-POWEROFF\n"


def test_judge_console_with_every_proof_passes() -> None:
    assert demo.judge(0, CONSOLE.replace("\n", "\r\n")) == 0


def test_judge_nonzero_exit_code_fails() -> None:
    assert demo.judge(1, CONSOLE) == 1


def test_judge_guest_that_did_not_power_off_fails() -> None:
    assert demo.judge(0, CONSOLE.replace("GUEST-POWEROFF", "")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "Linux 6.12.95+deb12-cloud-amd64 x86_64",
        "[    0.000000] Hypervisor detected: KVM",
        "Cloud Hypervisor",
        "hypervisor",
        "1",
        "MemTotal:         475152 kB",
        "00:00.0 Host bridge: Intel Corporation Device 0d57",
    ],
)
def test_judge_console_without_one_proof_fails(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = demo.judge(0, CONSOLE.replace(f"\n{line}\n", "\n", 1))

    assert code == 1
    assert capsys.readouterr().out.count("demo: NO ") == 1


def test_judge_proofs_outside_of_the_script_do_not_count() -> None:
    assert demo.judge(0, f"{ANSWERS}GUEST-RUN-BEGIN\nGUEST-RUN-END 0\nGUEST-POWEROFF\n") == 1


def test_script_prints_each_question_and_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "QUESTIONS", ("echo 'a b'", "echo x | tr x y"))

    done = subprocess.run(["sh", "-c", demo.script()], capture_output=True, text=True, check=True)

    assert done.stdout == "guest# echo 'a b'\na b\nguest# echo x | tr x y\ny\n"


def test_shown_command_leaves_the_encoded_script_out() -> None:
    assert demo.shown(["vmm", "--cmdline", "quiet run=YWJj then=wait"]) == (
        "vmm --cmdline 'quiet run=… then=wait'"
    )
