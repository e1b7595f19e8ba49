"""Programs for seccomp: which system calls a thread may make, in classic BPF.

A program looks at the architecture, finds the call's number in a binary tree of ranges, and looks
at arguments only where a rule has conditions. The kernel runs no program at all for a call that is
allowed whatever its arguments are (since Linux 5.11), so the order of the rules does not matter.
Source: Linux Documentation/userspace-api/seccomp_filter.rst; include/uapi/linux/{bpf_common,
filter,seccomp,audit}.h.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

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

INSTRUCTION_BYTES = 8
LONGEST_JUMP = 255


class Condition(ABC):
    """What an argument is asked, in its lower 32 bits.

    The kernel reads no others of the arguments that conditions are about.
    """

    # None of these is a named tuple or a dataclass: those take longer to declare, at every start,
    # than all programs take to write.
    def __init__(self, argument: int, *values: int) -> None:
        self.argument = argument
        self.values = values

    @abstractmethod
    def test(self, refuse: bytes) -> bytes:
        """Write the test of an argument that is loaded; it goes on where the condition holds."""


class OneOf(Condition):
    """It is one of these values."""

    def test(self, refuse: bytes) -> bytes:
        """See ``Condition``."""
        last = len(self.values)
        tests = (
            _instruction(JUMP_IF_EQUAL, value, if_true=last - at)
            for at, value in enumerate(self.values)
        )
        return b"".join(tests) + refuse


class NoneOf(Condition):
    """It is none of these values."""

    def test(self, refuse: bytes) -> bytes:
        """See ``Condition``."""
        tests = (_instruction(JUMP_IF_EQUAL, value, if_false=1) + refuse for value in self.values)
        return b"".join(tests)


class Without(Condition):
    """It has none of these bits."""

    def test(self, refuse: bytes) -> bytes:
        """See ``Condition``."""
        tests = (_instruction(JUMP_IF_ANY_BIT, bits, if_false=1) + refuse for bits in self.values)
        return b"".join(tests)


class Rule:
    """What becomes of a call: ``action`` if all conditions hold, else what becomes of the rest."""

    def __init__(self, *conditions: Condition, action: int = ALLOW) -> None:
        self.conditions = conditions
        self.action = action


ALLOWED = Rule()


def assemble(rules: Mapping[int, Rule], otherwise: int) -> bytes:
    """Write the program of some rules, by the numbers of their calls, and an action for the rest.

    It is an array of ``struct sock_filter``. A call of another architecture is one of the rest. So
    is any of x32: their numbers begin at 0x40000000, where no rule is.
    """
    refuse = _instruction(RETURN, otherwise)
    return b"".join(
        (
            _instruction(LOAD, ARCHITECTURE_AT),
            _instruction(JUMP_IF_EQUAL, AUDIT_ARCH_X86_64, if_true=1),
            refuse,
            _instruction(LOAD, NUMBER_AT),
            _tree(list(_ranges(rules)), refuse),
        )
    )


def _instruction(code: int, operand: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """``struct sock_filter``. The jumps count from the next instruction on."""
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _ranges(rules: Mapping[int, Rule]) -> Iterator[tuple[int, Rule | None]]:
    """Where the rule changes, by rising numbers, each with the one from there on."""
    before: Rule | None = rules.get(0)
    yield 0, before
    for number in sorted({each + step for each in rules for step in (0, 1)} - {0}):
        rule = rules.get(number)
        if rule is not before:
            yield number, rule
        before = rule


def _tree(ranges: Sequence[tuple[int, Rule | None]], refuse: bytes) -> bytes:
    if len(ranges) == 1:
        return _leaf(ranges[0][1], refuse)
    middle = len(ranges) // 2
    below, above = _tree(ranges[:middle], refuse), _tree(ranges[middle:], refuse)
    skipped = len(below) // INSTRUCTION_BYTES
    if skipped > LONGEST_JUMP:
        raise ValueError(f"{skipped} instructions are more than a jump of {LONGEST_JUMP} skips")
    return _instruction(JUMP_IF_AT_LEAST, ranges[middle][0], if_true=skipped) + below + above


def _leaf(rule: Rule | None, refuse: bytes) -> bytes:
    if rule is None:
        return refuse
    tests = (
        _instruction(LOAD, ARGUMENTS_AT + ARGUMENT_BYTES * each.argument) + each.test(refuse)
        for each in rule.conditions
    )
    return b"".join(tests) + _instruction(RETURN, rule.action)
