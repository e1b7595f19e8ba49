"""Core scheduling: which cookie a vCPU's thread is made with.

Whether two threads then share a core is the host kernel's to decide. Debian's has no core
scheduling, so these tests look at what it is asked for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.machines import configure, running
from tests.kvm.guests.programs import HALT
from vmm.kvm_cffi import VcpuThread, host

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]


@pytest.mark.parametrize(
    ("mode", "order"),
    [
        ("Vm", ["cookie", "thread", "thread", "cookie"]),
        ("Vcpu", ["cookie", "thread", "cookie", "thread", "cookie"]),
        ("Off", ["thread", "thread"]),
    ],
)
async def test_threads_of_vcpus_are_made_with_the_cookies_of_the_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, order: list[str]
) -> None:
    asked: list[str] = []
    start = VcpuThread.start

    def start_and_note(thread: VcpuThread) -> None:
        asked.append("thread")
        start(thread)

    def note_cookie() -> bool:
        asked.append("cookie")
        return False

    monkeypatch.setattr(VcpuThread, "start", start_and_note)
    monkeypatch.setattr(host, "create_core_scheduling_cookie", note_cookie)
    cpus = {"boot_vcpus": 2, "max_vcpus": 2, "core_scheduling": mode}
    config = configure(write_kernel(tmp_path, HALT), cpus=cpus)

    async with running(config):
        assert asked == order


def test_cookie_is_made_or_the_host_has_none() -> None:
    assert host.create_core_scheduling_cookie() in (True, False)
