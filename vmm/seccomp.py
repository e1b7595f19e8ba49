"""Which system calls the VMM may make: a list for each kind of its threads, and what a breach does.

``EVERYONE`` is for the whole process: trio's thread, the workers it hands long calls to, and the
processes that it starts, which inherit it. The threads that live in C obey a shorter list besides,
from their first instruction on: a vCPU's thread ``VCPU``, those that bring memory ``PAGER``. The
kernel's own workers of an io_uring make no system calls.

What a rule asks of an argument is in its lower 32 bits: the kernel reads no more of it.
Spec: Cloud Hypervisor command line, "Seccomp / Landlock".
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from vmm.kvm_cffi.bpf import ALLOWED, NoneOf, OneOf, Rule, Without, assemble
from vmm.kvm_cffi.constants import (
    KVM_NMI,
    KVM_RUN,
    UFFDIO_COPY,
    UFFDIO_UNREGISTER,
    UFFDIO_WAKE,
    UFFDIO_ZEROPAGE,
)
from vmm.kvm_cffi.seccomp import install
from vmm.kvm_cffi.system_calls import NUMBERS

if TYPE_CHECKING:
    from collections.abc import Mapping

TRAP: Final = 0x00030000
LOG: Final = 0x7FFC0000
ERRNO: Final = 0x00050000
"""SECCOMP_RET_*; the error's number is added to the last."""

BREACHES: Final = {"true": TRAP, "log": LOG, "errno": ERRNO | errno.EPERM}
"""What happens to a call that is not allowed, by the option's value."""

FILES = """
    read write pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 lseek sendfile
    copy_file_range splice tee vmsplice readahead fadvise64 cachestat
    open openat openat2 creat close close_range dup dup2 dup3 fcntl flock pipe pipe2
    stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 file_getattr
    getdents getdents64 getcwd chdir fchdir umask readlink readlinkat
    truncate ftruncate fallocate fsync fdatasync sync_file_range sync syncfs
    mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
    chmod fchmod fchmodat fchmodat2 utime utimes futimesat utimensat
    getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat
    inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
"""
WAITING = """
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    epoll_pwait2 eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime
    io_uring_setup io_uring_enter io_uring_register
    nanosleep clock_nanosleep pause alarm getitimer setitimer restart_syscall
    timer_create timer_settime timer_gettime timer_getoverrun timer_delete
    time times gettimeofday clock_gettime clock_getres
"""
MEMORY = """
    mmap munmap mremap mprotect brk madvise msync mincore mlock mlock2 munlock mlockall munlockall
    pkey_mprotect pkey_alloc pkey_free mseal map_shadow_stack membarrier memfd_create userfaultfd
    mbind set_mempolicy get_mempolicy set_mempolicy_home_node move_pages migrate_pages
"""
NETWORK = """
    connect accept accept4 bind listen shutdown getsockname getpeername getsockopt setsockopt
    sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg
"""
THREADS = """
    fork vfork execve exit exit_group wait4 waitid set_tid_address set_robust_list get_robust_list
    rseq futex futex_waitv futex_wake futex_wait futex_requeue arch_prctl getcpu
    sched_yield sched_setaffinity sched_getaffinity sched_setscheduler sched_getscheduler
    sched_setparam sched_getparam sched_setattr sched_getattr sched_get_priority_max
    sched_get_priority_min sched_rr_get_interval getpriority setpriority ioprio_set ioprio_get
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack
    kill tkill tgkill pidfd_open pidfd_send_signal
    landlock_create_ruleset landlock_add_rule landlock_restrict_self
"""
IDENTITY = """
    getpid gettid getppid getpgid getpgrp setpgid getsid setsid getuid geteuid getgid getegid
    getresuid getresgid getgroups capget getrlimit setrlimit prlimit64 getrusage uname sysinfo
    getrandom
"""

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16  # The last is libc's, for names of hosts.
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
NEW_NAMESPACES = 0x7E020000
"""CLONE_NEW*. The one of time is not for clone, where its bit is a part of a signal's number."""

SECCOMP_SET_MODE_FILTER, NO_FLAGS = 1, 0
PRCTL_OPTIONS = {
    "PR_SET_PDEATHSIG": 1,
    "PR_GET_PDEATHSIG": 2,
    "PR_GET_DUMPABLE": 3,
    "PR_SET_DUMPABLE": 4,
    "PR_SET_NAME": 15,
    "PR_GET_NAME": 16,
    "PR_GET_SECCOMP": 21,
    "PR_CAPBSET_READ": 23,
    "PR_SET_TIMERSLACK": 29,
    "PR_GET_TIMERSLACK": 30,
    "PR_SET_NO_NEW_PRIVS": 38,
    "PR_GET_NO_NEW_PRIVS": 39,
    "PR_SET_THP_DISABLE": 41,
    "PR_GET_THP_DISABLE": 42,
    "PR_SCHED_CORE": 62,
    "PR_SET_VMA": 0x53564D41,
}

EVERYONE: Final[Mapping[str, Rule]] = {
    **dict.fromkeys((FILES + WAITING + MEMORY + NETWORK + THREADS + IDENTITY).split(), ALLOWED),
    "socket": Rule(OneOf(0, AF_UNIX, AF_INET, AF_INET6, AF_NETLINK)),
    "socketpair": Rule(OneOf(0, AF_UNIX)),
    # A line typed into the terminal that the VMM was started from is run by the user's shell.
    "ioctl": Rule(NoneOf(1, TIOCSTI, TIOCLINUX)),
    "prctl": Rule(OneOf(0, *PRCTL_OPTIONS.values())),
    "clone": Rule(Without(0, NEW_NAMESPACES)),
    # Its flags are in memory, where no filter sees them; libc then takes clone.
    "clone3": Rule(action=ERRNO | errno.ENOSYS),
    # The C threads obey more rules than this; nobody can obey fewer.
    "seccomp": Rule(OneOf(0, SECCOMP_SET_MODE_FILTER), OneOf(1, NO_FLAGS)),
}

PROT_EXEC = 4
NO_CODE = Rule(Without(2, PROT_EXEC))

ANY_C_THREAD: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(
        (
            *("write", "futex", "clock_gettime", "sched_yield", "gettid"),
            *("rt_sigreturn", "rt_sigprocmask", "restart_syscall"),
            # libc's malloc, and its end of a thread.
            *("munmap", "madvise", "brk", "sched_getaffinity", "set_robust_list", "rseq", "exit"),
        ),
        ALLOWED,
    ),
    "mmap": NO_CODE,
    "mprotect": NO_CODE,
}

VCPU: Final[Mapping[str, Rule]] = {
    **ANY_C_THREAD,
    "ioctl": Rule(OneOf(1, KVM_RUN, KVM_NMI)),
}

PAGER: Final[Mapping[str, Rule]] = {
    **ANY_C_THREAD,
    **dict.fromkeys(("read", "poll", "ppoll", "recvfrom", "sendto", "setpriority"), ALLOWED),
    "ioctl": Rule(OneOf(1, UFFDIO_COPY, UFFDIO_ZEROPAGE, UFFDIO_WAKE, UFFDIO_UNREGISTER)),
}


def filter_system_calls(mode: str) -> None:
    """Have this process, its threads and its children make no others, for good.

    ``mode`` is a key of ``BREACHES``, or "false": then nothing is filtered. Raises: HostError
    (host) where the kernel has no seccomp.
    """
    if mode == "false":
        return
    breach = BREACHES[mode]
    install(
        _program(EVERYONE, breach),
        vcpu=_program(VCPU, breach),
        pager=_program(PAGER, breach),
        traps=breach == TRAP,
    )


def _program(table: Mapping[str, Rule], breach: int) -> bytes:
    return assemble({NUMBERS[name]: rule for name, rule in table.items()}, breach)
