"""Schemathesis, a judge that is not ours, reads the served document and tries what it says.

It sends what the schemas allow, what they forbid and the edges of both, to a VMM that is served
over TCP by an inherited listener, and holds each answer against the document.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import SECONDS, SMALL, short_folder
from vmm.api.openapi import PREFIX
from vmm.api.paths import ROUTES

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.usefixtures("kvm"),
    pytest.mark.skipif(find_spec("schemathesis") is None, reason="Schemathesis is not installed"),
]

ROOT = Path(__file__).resolve().parents[2]
BUDGET_S = 20
"""What one run may take to send; it starts and reports in a few seconds more."""

CHECKS = (
    "allow_header_conformance",
    "content_type_conformance",
    "failure_is_the_hosts",
    "response_schema_conformance",
    "status_code_conformance",
    "unsupported_method",
)
"""Not among them: that what the schema forbids is refused. Descriptors mean nothing in JSON, so
that whatever stands for one is taken and ignored, as in the original."""

ENDING = {"/vmm.shutdown"}
MAKING_INTERFACES = {"/vm.add-net"}
ENDING_THE_GUEST = {"/vm.shutdown", "/vm.delete", "/vm.reboot", "/vm.nmi", "/vmm.nmi"}
"""This guest knows no NMI, and is reset by one."""

place = short_folder


def judge(folder: Path, left_out: set[str], *arguments: str) -> str:
    """Have a VMM judged, and give what it wrote on stderr; it must end in order."""
    with socket.create_server(("127.0.0.1", 0)) as listener, (folder / "errors").open("w") as file:
        command = [sys.executable, "-m", "vmm", "--api-socket", f"fd={listener.fileno()}"]
        with subprocess.Popen(
            [*command, *arguments], cwd=folder, stderr=file, pass_fds=(listener.fileno(),)
        ) as vmm:
            try:
                run_schemathesis(folder, left_out, listener.getsockname()[1])
            finally:
                vmm.terminate()
                code = vmm.wait(SECONDS)
    errors = (folder / "errors").read_text()
    assert code == 0, errors
    return errors


def run_schemathesis(folder: Path, left_out: set[str], port: int) -> None:
    url = f"http://127.0.0.1:{port}{PREFIX}"
    excluded = [word for path in sorted(left_out) for word in ("--exclude-path", path)]
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--url", url, "--phases", "coverage,fuzzing", "--max-time", str(BUDGET_S)),
            *("--checks", ",".join(CHECKS), "--warnings", "off", "--no-color", *excluded),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.kvm.guests.schemathesis_hooks",
        },
        capture_output=True,
        text=True,
        timeout=BUDGET_S + SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    tested = re.search(r"Tested: (\d+)", ended.stdout)
    # All of them, but on a host that is too busy to get so far.
    assert tested is not None, ended.stdout
    assert int(tested[1]) > (len(ROUTES) - len(left_out)) // 2, ended.stdout


def test_every_answer_without_a_vm_is_the_documented_one(place: Path) -> None:
    errors = judge(place, ENDING | MAKING_INTERFACES)

    assert "Traceback" not in errors


def test_every_answer_beside_a_running_guest_is_the_documented_one(place: Path) -> None:
    kernel = write_kernel(place, programs.HALT)

    left_out = ENDING | MAKING_INTERFACES | ENDING_THE_GUEST
    errors = judge(place, left_out, "--kernel", str(kernel), *SMALL)

    assert "Traceback" not in errors
