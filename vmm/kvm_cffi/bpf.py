"""Programs for seccomp: which system calls a thread may make, in classic BPF.

A program looks at the architecture, finds the call's number in a binary tree of ranges, and looks
at arguments only where a rule has conditions. The kernel runs no program at all for a call that is
allowed whatever its arguments are (since Linux 5.11), so the order of the rules does not matter.
Source: Linux Documentation/userspace-api/seccomp_filter.rst; include/uapi/linux/{bpf_common,
filter,seccomp,audit}.h.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

AUDIT_ARCH_X86_64 = 0xC000003E
NUMBER_AT = 0
ARCHITECTURE_AT = 4
ARGUMENTS_AT = 16
ARGUMENT_BYTES = 8

LOAD = 0x20
JUMP_IF_EQUAL = 0x15
JUMP_IF_AT_LEAST = 0x35
JUMP_IF_ANY_BIT = 0x45
RETURN = 0x06

ALLOW = 0x7FFF0000
"""SECCOMP_RET_ALLOW."""

INSTRUCTION = "=HBBI"
LONGEST_JUMP = 255


class Instruction(NamedTuple):
    """``struct sock_filter``. The jumps count from the next instruction on."""

    code: int
    jump_true: int
    jump_false: int
    operand: int


class OneOf(NamedTuple):
    """An argument is one of these values, in its lower 32 bits.

    So are all conditions: of the arguments that they are about, the kernel looks at no others.
    """

    argument: int
    values: tuple[int, ...]


class NoneOf(NamedTuple):
    """An argument is none of these values."""

    argument: int
    values: tuple[int, ...]


class Without(NamedTuple):
    """An argument has none of these bits."""

    argument: int
    bits: int


Condition = OneOf | NoneOf | Without


class Rule(NamedTuple):
    """What becomes of a call: ``action`` if all conditions hold, else what becomes of the rest."""

    conditions: tuple[Condition, ...] = ()
    action: int = ALLOW


def assemble(rules: Mapping[int, Rule], otherwise: int) -> bytes:
    """Write the program of some rules, by the numbers of their calls, and an action for the rest.

    It is an array of ``struct sock_filter``. A call of another architecture is one of the rest. So is any of x32: their numbers begin at
    0x40000000, where no rule is.
    """
    program = [
        Instruction(LOAD, 0, 0, ARCHITECTURE_AT),
        Instruction(JUMP_IF_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        Instruction(RETURN, 0, 0, otherwise),
        Instruction(LOAD, 0, 0, NUMBER_AT),
        *_tree(list(_ranges(rules)), otherwise),
    ]
    return b"".join(struct.pack(INSTRUCTION, *each) for each in program)


def _ranges(rules: Mapping[int, Rule]) -> Iterator[tuple[int, Rule | None]]:
    """Where the rule changes, by rising numbers, each with the one from there on."""
    yield 0, rules.get(0)
    for number in sorted({each + step for each in rules for step in (0, 1)} - {0}):
        if rules.get(number) != rules.get(number - 1):
            yield number, rules.get(number)


def _tree(ranges: Sequence[tuple[int, Rule | None]], otherwise: int) -> list[Instruction]:
    if len(ranges) == 1:
        return _leaf(ranges[0][1], otherwise)
    middle = len(ranges) // 2
    below, above = _tree(ranges[:middle], otherwise), _tree(ranges[middle:], otherwise)
    if len(below) > LONGEST_JUMP:
        raise ValueError(f"{len(below)} instructions are more than a jump of {LONGEST_JUMP} skips")
    return [Instruction(JUMP_IF_AT_LEAST, len(below), 0, ranges[middle][0]), *below, *above]


def _leaf(rule: Rule | None, otherwise: int) -> list[Instruction]:
    refuse = Instruction(RETURN, 0, 0, otherwise)
    if rule is None:
        return [refuse]
    made: list[Instruction] = []
    for condition in rule.conditions:
        made.append(Instruction(LOAD, 0, 0, ARGUMENTS_AT + ARGUMENT_BYTES * condition.argument))
        match condition:
            case OneOf(values=values):
                made += [
                    Instruction(JUMP_IF_EQUAL, len(values) - at, 0, value)
                    for at, value in enumerate(values)
                ]
                made.append(refuse)
            case NoneOf(values=values):
                for value in values:
                    made += [Instruction(JUMP_IF_EQUAL, 0, 1, value), refuse]
            case Without(bits=bits):
                made += [Instruction(JUMP_IF_ANY_BIT, 0, 1, bits), refuse]
    return [*made, Instruction(RETURN, 0, 0, rule.action)]
