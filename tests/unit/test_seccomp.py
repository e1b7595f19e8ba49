"""The lists of system calls, as the kernel would go by them, and what becomes of a breach."""

from __future__ import annotations

import errno
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.classic_bpf import I386, verdict
from vmm import seccomp
from vmm.cli import SECCOMP_MODES
from vmm.errors import HostError
from vmm.kvm_cffi import constants
from vmm.kvm_cffi import seccomp as kernel
from vmm.kvm_cffi.bpf import ALLOW, ALLOWED, OneOf, Rule, assemble
from vmm.kvm_cffi.system_calls import NUMBERS
from vmm.seccomp import BREACHES, EVERYONE, PAGER, VCPU, filter_system_calls

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
TABLES = {"everyone": EVERYONE, "vcpu": VCPU, "pager": PAGER}
X32 = 0x40000000
BEYOND_ALL_NUMBERS = 1024
TRAP = BREACHES["true"]

BEYOND_THE_VM = """
    ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd personality
    kexec_load kexec_file_load init_module finit_module delete_module bpf perf_event_open
    mount umount2 pivot_root chroot unshare setns fsopen fsmount fsconfig move_mount open_tree
    mount_setattr open_by_handle_at mknod mknodat quotactl swapon swapoff reboot acct
    setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset
    add_key request_key keyctl iopl ioperm modify_ldt syslog sethostname setdomainname
    settimeofday clock_settime adjtimex clock_adjtime lookup_dcookie execveat fanotify_init
"""


def program_of(table: Mapping[str, Rule]) -> bytes:
    return assemble({NUMBERS[name]: rule for name, rule in table.items()}, TRAP)


def of_everyone(name: str, *arguments: int) -> int:
    return verdict(program_of(EVERYONE), NUMBERS[name], arguments)


@pytest.mark.skipif(not HEADER.exists(), reason=f"{HEADER} is missing: linux-libc-dev")
def test_numbers_are_those_of_the_kernel_s_header() -> None:
    pairs = re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text())
    declared = {name: int(number) for name, number in pairs}

    assert len(declared) > 300
    assert {
        name: NUMBERS.get(name) for name in declared if name in NUMBERS or declared[name] < 470
    } == declared


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("breach", BREACHES.values())
def test_call_that_is_listed_is_allowed_and_every_other_gives_the_mode_s_action(
    kind: str, breach: int
) -> None:
    table = TABLES[kind]
    program = assemble({NUMBERS[name]: rule for name, rule in table.items()}, breach)
    free = {NUMBERS[name] for name, rule in table.items() if rule is ALLOWED}
    conditional = {NUMBERS[name] for name in table} - free

    for number in {*range(BEYOND_ALL_NUMBERS), 2**31, 2**32 - 1} - conditional:
        assert verdict(program, number) == (ALLOW if number in free else breach), number
    for number in range(BEYOND_ALL_NUMBERS):
        assert verdict(program, X32 | number) == breach
        assert verdict(program, number, architecture=I386) == breach


@pytest.mark.parametrize("name", BEYOND_THE_VM.split())
def test_call_that_reaches_beyond_the_vm_is_on_no_list(name: str) -> None:
    assert name in NUMBERS
    assert not any(name in table for table in TABLES.values())


@pytest.mark.parametrize("table", [VCPU, PAGER])
def test_thread_of_c_is_allowed_nothing_that_the_process_is_not(table: Mapping[str, Rule]) -> None:
    assert table.keys() < EVERYONE.keys()
    for condition in table["ioctl"].conditions:
        assert isinstance(condition, OneOf)
        assert {of_everyone("ioctl", 3, request) for request in condition.values} == {ALLOW}


@pytest.mark.parametrize(
    ("name", "arguments", "action"),
    [
        ("socket", (1, 1, 0), ALLOW),
        ("socket", (16, 3, 0), ALLOW),
        ("socket", (17, 3, 0), TRAP),
        ("socket", (38, 5, 0), TRAP),
        ("socket", (40, 1, 0), TRAP),
        ("socket", (17 | 1 << 32, 3, 0), TRAP),
        ("socket", (2 | 1 << 32, 3, 0), ALLOW),
        ("socketpair", (1, 1, 0), ALLOW),
        ("socketpair", (2, 1, 0), TRAP),
        ("ioctl", (0, 0x5412, 0), TRAP),
        ("ioctl", (0, 0x541C, 0), TRAP),
        ("ioctl", (0, 0x5412 | 1 << 40, 0), TRAP),
        ("ioctl", (0, 0x5413, 0), ALLOW),
        ("ioctl", (9, 0xAE01, 0), ALLOW),
        ("clone", (0x3D0F00, 0), ALLOW),
        ("clone", (0x4111, 0), ALLOW),
        *(("clone", (17 | bit, 0), TRAP) for bit in (1 << 17, *(1 << at for at in range(25, 31)))),
        ("clone3", (1, 88), 0x00050000 | errno.ENOSYS),
        ("prctl", (15, 1), ALLOW),
        ("prctl", (62, 1), ALLOW),
        ("prctl", (22, 2), TRAP),
        ("prctl", (8, 1), TRAP),
        ("seccomp", (1, 0, 1), ALLOW),
        ("seccomp", (1, 8, 1), TRAP),
        ("seccomp", (0, 0, 0), TRAP),
    ],
)
def test_arguments_of_a_call_of_the_process_decide(
    name: str, arguments: tuple[int, ...], action: int
) -> None:
    assert of_everyone(name, *arguments) == action


@pytest.mark.parametrize(
    ("table", "name", "arguments", "action"),
    [
        (VCPU, "ioctl", (9, constants.KVM_RUN, 0), ALLOW),
        (VCPU, "ioctl", (9, constants.KVM_NMI, 0), ALLOW),
        (VCPU, "ioctl", (9, constants.KVM_RUN + 1, 0), TRAP),
        (VCPU, "ioctl", (9, constants.UFFDIO_COPY, 0), TRAP),
        (PAGER, "ioctl", (9, constants.UFFDIO_COPY, 0), ALLOW),
        (PAGER, "ioctl", (9, constants.KVM_RUN, 0), TRAP),
        *((table, "mmap", (0, 4096, 3), ALLOW) for table in (VCPU, PAGER)),
        *((table, "mmap", (0, 4096, 7), TRAP) for table in (VCPU, PAGER)),
        *((table, "mprotect", (0, 4096, 0), ALLOW) for table in (VCPU, PAGER)),
        *((table, "mprotect", (0, 4096, 5), TRAP) for table in (VCPU, PAGER)),
        *((VCPU, name, (), TRAP) for name in ("openat", "read", "clone", "execve", "socket")),
        *((PAGER, name, (), TRAP) for name in ("openat", "clone", "execve", "connect")),
    ],
)
def test_arguments_of_a_call_of_a_thread_of_c_decide(
    table: Mapping[str, Rule], name: str, arguments: tuple[int, ...], action: int
) -> None:
    assert verdict(program_of(table), NUMBERS[name], arguments) == action


def test_requests_have_the_kernel_s_numbers() -> None:
    def request(direction: int, kind: int, number: int, size: int) -> int:
        return direction << 30 | size << 16 | kind << 8 | number

    assert request(0, 0xAE, 0x80, 0) == constants.KVM_RUN
    assert request(0, 0xAE, 0x9A, 0) == constants.KVM_NMI
    assert request(2, 0xAA, 0x01, 16) == constants.UFFDIO_UNREGISTER
    assert request(2, 0xAA, 0x02, 16) == constants.UFFDIO_WAKE
    assert request(3, 0xAA, 0x03, 40) == constants.UFFDIO_COPY
    assert request(3, 0xAA, 0x04, 32) == constants.UFFDIO_ZEROPAGE


def test_modes_are_those_of_the_command_line() -> None:
    assert {*BREACHES, "false"} == set(SECCOMP_MODES)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_kernel_without_it_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    class Lib:
        VK_THREAD_VCPU, VK_THREAD_PAGER = 0, 1

        def vk_seccomp_report_traps(self, names: bytes, size: int) -> int:
            assert names.split(b"\0")[NUMBERS["ptrace"]] == b"ptrace"
            return 0

        def vk_seccomp_declare(self, kind: int, program: object, size: int) -> int:
            return 0

        def vk_seccomp_restrict(self, program: object, size: int) -> int:
            return -code

    monkeypatch.setattr(kernel, "lib", Lib())

    with pytest.raises(HostError, match=r"seccomp failed: .*; use a kernel .* or --seccomp false"):
        filter_system_calls("true")


def test_mode_false_installs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "install", None)

    filter_system_calls("false")


def run(mode: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run some Python after the filter was installed in its process."""
    begin = (
        "import os, signal, socket, sys\n"
        "from vmm.seccomp import filter_system_calls\n"
        f"filter_system_calls('{mode}')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", begin + code], capture_output=True, text=True, check=False
    )


BREACH = "os.setuid(os.getuid())"
IN_A_THREAD = f"import threading; threading.Thread(target=lambda: {BREACH}).start()"
SAID = (
    rf"\nProbable seccomp violation: system call {NUMBERS['setuid']} \(setuid\) at 0x[0-9a-f]+ "
    r"in thread \d+; --seccomp log goes on and has the kernel log each\n"
)


@pytest.mark.parametrize("breach", [BREACH, IN_A_THREAD])
def test_breach_names_the_call_and_the_process_dies_of_the_signal(breach: str) -> None:
    ended = run("true", breach)

    assert ended.returncode == -signal.SIGSYS
    assert re.fullmatch(SAID, ended.stderr)


def test_argument_that_is_not_allowed_is_a_breach() -> None:
    ended = run("true", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)")

    assert ended.returncode == -signal.SIGSYS
    assert f"system call {NUMBERS['socket']} (socket)" in ended.stderr


def test_signal_that_somebody_sends_is_not_taken_for_a_breach() -> None:
    ended = run("true", "os.kill(os.getpid(), signal.SIGSYS)")

    assert ended.returncode == -signal.SIGSYS
    assert ended.stderr == ""


def test_breach_with_errno_is_refused() -> None:
    ended = run("errno", f"try:\n    {BREACH}\nexcept PermissionError as error: print(error.errno)")

    assert (ended.returncode, ended.stdout) == (0, f"{errno.EPERM}\n"), ended.stderr


def test_breach_with_log_is_carried_out() -> None:
    ended = run("log", f"{BREACH}; print('done')")

    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


def test_process_that_is_started_obeys_too() -> None:
    child = f"[sys.executable, '-c', 'import os; {BREACH}']"
    ended = run("true", f"import subprocess; print(subprocess.run({child}).returncode)")

    assert (ended.returncode, ended.stdout) == (0, f"{-signal.SIGSYS}\n"), ended.stderr


def test_thread_that_was_there_before_obeys_too() -> None:
    code = (
        "import os, threading, time\n"
        "from pathlib import Path\n"
        "from vmm.seccomp import filter_system_calls\n"
        "end = threading.Event()\n"
        "thread = threading.Thread(target=end.wait)\n"
        "thread.start()\n"
        "filter_system_calls('true')\n"
        "print(Path(f'/proc/self/task/{thread.native_id}/status').read_text())\n"
        "end.set()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "Seccomp:\t2\n" in ended.stdout
    assert "NoNewPrivs:\t1\n" in ended.stdout
