"""Have a thread of another process make a system call, as an intruder in it would.

Source: ptrace(2); the registers are ``struct user_regs_struct`` of x86-64.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

SINGLE_STEP, GET_REGISTERS, SET_REGISTERS, DETACH = 9, 12, 13, 17
SEIZE, INTERRUPT = 0x4206, 0x4207
ALL_THREADS = 0x40000000
SECONDS = 30.0
SYSCALL = b"\x0f\x05"
NO_CALL = 2**64 - 1


REGISTERS = """
    r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags
    rsp ss fs_base gs_base ds es fs gs
"""


class Registers(ctypes.Structure):
    """``struct user_regs_struct``."""

    _fields_: ClassVar = [(name, ctypes.c_uint64) for name in REGISTERS.split()]


def _ptrace(request: int, tid: int, data: object = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(request, tid, None, data) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"ptrace request {request:#x} of thread {tid}")


@contextmanager
def _stopped(tid: int) -> Iterator[Registers]:
    """Stop a thread in a system call, and let go of it as its registers are told then."""
    deadline = time.monotonic() + SECONDS
    while (registers := _stop(tid)) is None:
        assert time.monotonic() < deadline, "the thread makes no system call"
        os.sched_yield()
    yield registers
    _ptrace(SET_REGISTERS, tid, ctypes.byref(registers))
    _ptrace(DETACH, tid)


def _stop(tid: int) -> Registers | None:
    """Stop a thread; one that is in no system call goes on."""
    _ptrace(SEIZE, tid)
    _ptrace(INTERRUPT, tid)
    _wait(tid)
    registers = Registers()
    _ptrace(GET_REGISTERS, tid, ctypes.byref(registers))
    with open(f"/proc/{tid}/mem", "rb") as memory:
        memory.seek(registers.rip - len(SYSCALL))
        if memory.read(len(SYSCALL)) == SYSCALL:
            return registers
    _ptrace(DETACH, tid)
    return None


def _wait(tid: int) -> None:
    _, status = os.waitpid(tid, ALL_THREADS)
    assert os.WIFSTOPPED(status), status


def send_into(tid: int, number: int) -> None:
    """Have a thread make a system call, with zeros, and go on behind it if it can."""
    with _stopped(tid) as registers:
        registers.rip -= len(SYSCALL)
        registers.rax, registers.orig_rax = number, NO_CALL
        for name in ("rdi", "rsi", "rdx", "r10", "r8", "r9"):
            setattr(registers, name, 0)


def result_in(tid: int, number: int) -> int:
    """What a system call of a thread gives there; the thread does not know that it made one."""
    with _stopped(tid) as registers:
        call = Registers.from_buffer_copy(registers)
        call.rip -= len(SYSCALL)
        call.rax, call.orig_rax = number, NO_CALL
        _ptrace(SET_REGISTERS, tid, ctypes.byref(call))
        _ptrace(SINGLE_STEP, tid)
        _wait(tid)
        _ptrace(GET_REGISTERS, tid, ctypes.byref(call))
        return ctypes.c_int64(call.rax).value
