"""Boot Debian's kernel in a VM of ours, show its console, and check that it really is one.

``make demo`` runs this; ``make demo-shell`` runs it with ``--shell``. Where this machine's KVM
cannot run Linux, all of it happens in the nested host (tools/nested_host).
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import trio

from tools.images.cache import ImageError
from tools.images.initramfs import guest_words, initramfs, run_result
from tools.images.kernels import kernel
from tools.nested_host.probe import kvm_runs_linux

ROOT = Path(__file__).resolve().parent.parent
RELEASE = "6.12-cloud"
DEADLINE_S = 600

# What the guest is asked; the answers are checked below.
QUESTIONS = (
    "uname -srm",
    "dmesg | grep -i 'hypervisor detected'",
    "cat /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name",
    "grep -m 1 'model name' /proc/cpuinfo",
    "grep -o -m 1 -w hypervisor /proc/cpuinfo",
    "nproc",
    "grep MemTotal /proc/meminfo",
    "lspci",
)


@dataclass(frozen=True)
class Proof:
    """Something only a Linux on our machine prints."""

    claim: str
    pattern: str


PROOFS = (
    Proof("Debian's stock kernel runs", r"^Linux 6\.12\.\S+-cloud-amd64 x86_64$"),
    Proof("it found KVM below it", r"Hypervisor detected: KVM$"),
    Proof("its firmware tables name our machine", r"^Cloud Hypervisor\ncloud-hypervisor$"),
    Proof("its CPU says it is virtual", r"^hypervisor$"),
    Proof("it has the one CPU it was given", r"guest# nproc\n1$"),
    Proof("it has most of its 512 MiB", r"^MemTotal: +(4[0-9]|5[0-2])\d{4} kB$"),
    Proof("it sees our PCI host bridge", r"^00:00\.0 Host bridge: Intel Corporation Device 0d57"),
)


def main() -> int:
    """Run the demonstration; the exit code is 0 only if every proof was there."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--shell", action="store_true", help="the guest's shell on this terminal")
    wants_shell = parser.parse_args().shell
    try:
        argv = [*host_command(wants_shell), *vmm_command(wants_shell)]
    except (ImageError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    if wants_shell:
        say("the guest's shell follows; 'poweroff' in it ends the VM")
        return subprocess.run(argv, cwd=ROOT, check=False).returncode
    say(f"running {shown(argv)}")
    try:
        code, console = trio.run(run_and_show, argv)
    except trio.TooSlowError:
        print(f"demo: the guest did not power off within {DEADLINE_S} s.", file=sys.stderr)
        return 1
    return judge(code, console)


def say(text: str) -> None:
    """Print a line of ours, told apart from the guest's."""
    print(f"demo: {text}", flush=True)


def host_command(wants_shell: bool) -> list[str]:
    """Decide where the VM runs, say why, and return what goes before its command."""
    answer = kvm_runs_linux()
    if answer.runs:
        say(f"host: this machine's own, because {answer.reason}")
        return []
    say(f"host: the nested host, an emulated machine, because {answer.reason}")
    terminal = ["-t"] if wants_shell else []
    return [sys.executable, "-m", "tools.nested_host", "run", *terminal, "--"]


def vmm_command(wants_shell: bool) -> list[str]:
    """Return the VMM's own command line, as anybody would type it."""
    stock = kernel(RELEASE)
    words = guest_words(then="shell") if wants_shell else guest_words(script())
    return [
        ".venv/bin/python", "-m", "vmm",
        "--kernel", str(stock.vmlinuz),
        "--initramfs", str(initramfs(stock, "demo")),
        "--cmdline", f"console=ttyS0 quiet panic=-1 {words}",
        "--cpus", "boot=1",
        "--memory", "size=512M",
        "--serial", "tty",
        "--console", "off",
    ]  # fmt: skip


def script() -> str:
    """Return the guest's script: each question as at a prompt, then its answer."""
    ask = """ask() { echo "guest# $1"; eval "$1"; }"""
    return "\n".join([ask, *(f"ask {shlex.quote(each)}" for each in QUESTIONS)])


def shown(argv: list[str]) -> str:
    """Return a command line to read: quoted, the guest's encoded script left out."""
    return re.sub(r"run=[A-Za-z0-9+/=]+", "run=…", shlex.join(argv))


async def run_and_show(argv: list[str]) -> tuple[int, str]:
    """Run a command, pass its output on as it comes, and return exit code and output.

    Raises: trio.TooSlowError: it did not end in time.
    Cancel: the command is ended.
    """
    output = bytearray()

    async def run_process(
        task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await trio.run_process(
            argv,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=False,
            task_status=task_status,
        )

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            process = await nursery.start(run_process)
            async for chunk in process.stdout:
                output += chunk
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
    return process.returncode, output.decode(errors="replace")


def judge(code: int, console: str) -> int:
    """Say which proofs the console has, and return the exit code."""
    ran = run_result(console)
    answers = "" if ran is None else ran.output
    missing = [
        proof.claim for proof in PROOFS if re.search(proof.pattern, answers, re.MULTILINE) is None
    ]
    for proof in PROOFS:
        say(f"{'NO ' if proof.claim in missing else 'yes'} {proof.claim}")
    ended = code == 0 and "GUEST-POWEROFF" in console
    say(f"{'yes' if ended else 'NO '} it powered off and the VMM's exit code is 0 (was {code})")
    return 0 if ended and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
