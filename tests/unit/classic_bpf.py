"""What the kernel does with a program of seccomp: classic BPF, over the record of one call.

Source: Linux Documentation/networking/filter.rst; include/uapi/linux/{bpf_common,seccomp}.h.
"""

from __future__ import annotations

import struct

LOAD_ABSOLUTE_WORD = 0x20
JUMP, RETURN_CONSTANT = 0x05, 0x06
EQUAL, GREATER, AT_LEAST, ANY_BIT = 0x10, 0x20, 0x30, 0x40
CLASS, TEST = 0x07, 0xF0
MOST_INSTRUCTIONS = 4096
X86_64, I386 = 0xC000003E, 0x40000003


def verdict(
    program: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int = X86_64
) -> int:
    """Run a program for one call, and give the action that it returns."""
    all_arguments = (*arguments, *[0] * (6 - len(arguments)))
    record = struct.pack("<IIQ6Q", number, architecture, 0x7F0000000000, *all_arguments)
    instructions = list(struct.iter_unpack("<HBBI", program))
    assert 0 < len(instructions) <= MOST_INSTRUCTIONS
    accumulator = at = 0
    while True:
        code, if_true, if_false, operand = instructions[at]
        at += 1
        if code == LOAD_ABSOLUTE_WORD:
            assert operand % 4 == 0, "the kernel refuses another load"
            (accumulator,) = struct.unpack_from("<I", record, operand)
        elif code == RETURN_CONSTANT:
            return int(operand)
        else:
            assert code & CLASS == JUMP, f"instruction {code:#x} is not expected here"
            at += if_true if _holds(code & TEST, accumulator, operand) else if_false


def _holds(test: int, accumulator: int, operand: int) -> bool:
    return {
        EQUAL: accumulator == operand,
        GREATER: accumulator > operand,
        AT_LEAST: accumulator >= operand,
        ANY_BIT: accumulator & operand != 0,
    }[test]
