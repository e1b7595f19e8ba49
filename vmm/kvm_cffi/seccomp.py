"""Seccomp: programs that the kernel runs before each system call of a thread.

One is for all threads of the process and their children, for good. A thread that is made in C for
one purpose installs another before anything else, so that no caller can forget to.
Source: seccomp(2), Linux Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import errno

from vmm.errors import HostError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.system_calls import NUMBERS

HINTS = {
    errno.EINVAL: "use a kernel with CONFIG_SECCOMP_FILTER, or --seccomp false",
    errno.ENOSYS: "use a kernel with CONFIG_SECCOMP_FILTER, or --seccomp false",
    errno.ESRCH: "another thread of this process has a filter of its own",
}


def install(everyone: bytes, *, vcpu: bytes, pager: bytes, traps: bool) -> None:
    """Filter this process with one program, and the threads of C that it makes with theirs.

    Programs are arrays of ``struct sock_filter``. With ``traps`` a call for which one returns
    SECCOMP_RET_TRAP is named on stderr before the process dies of it. Raises: HostError (host).
    """
    if traps:
        names = {number: name for name, number in NUMBERS.items()}
        text = "".join(f"{names.get(number, '')}\0" for number in range(max(names) + 1)).encode()
        _check(lib.vk_seccomp_report_traps(text, len(text)))
    for kind, program in ((lib.VK_THREAD_VCPU, vcpu), (lib.VK_THREAD_PAGER, pager)):
        _check(lib.vk_seccomp_declare(kind, ffi.from_buffer(program), len(program)))
    _check(lib.vk_seccomp_restrict(ffi.from_buffer(everyone), len(everyone)))


def _check(result: int) -> None:
    if result < 0:
        raise HostError("seccomp", -result, hint=HINTS.get(-result))
