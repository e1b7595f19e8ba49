"""A program of seccomp decides what its rules say, whatever they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.classic_bpf import I386, X86_64, verdict
from vmm.kvm_cffi.bpf import ALLOW, Condition, NoneOf, OneOf, Rule, Without, assemble

BREACH = 0x00030000
OTHER = 0x00050026

LAST_NUMBER = 2**31 - 1
"""The kernel keeps a call's number in an int."""

numbers = st.one_of(st.integers(0, 40), st.integers(0, LAST_NUMBER))
words = st.one_of(st.integers(0, 8), st.integers(0, 2**32 - 1))
kinds = st.sampled_from([OneOf, NoneOf, Without])
several = st.lists(words, min_size=1, max_size=4)
conditions = st.builds(
    lambda kind, at, values: kind(at, *values), kinds, st.integers(0, 5), several
)
rules = st.builds(
    lambda conditions, action: Rule(*conditions, action=action),
    st.lists(conditions, max_size=3),
    st.sampled_from([ALLOW, OTHER]),
)
arguments = st.tuples(*[st.one_of(words, st.integers(0, 2**64 - 1))] * 6)


def holds(condition: Condition, values: tuple[int, ...]) -> bool:
    value = values[condition.argument] % 2**32
    if isinstance(condition, OneOf):
        return value in condition.values
    if isinstance(condition, NoneOf):
        return value not in condition.values
    return not any(value & bits for bits in condition.values)


@given(
    st.dictionaries(numbers, rules, max_size=12),
    st.lists(numbers, max_size=6),
    arguments,
    st.sampled_from([X86_64, X86_64, X86_64, I386]),
)
def test_program_decides_as_its_rules_do(
    table: dict[int, Rule], others: list[int], values: tuple[int, ...], architecture: int
) -> None:
    program = assemble(table, BREACH)

    for number in {*table, *others, *(each + 1 for each in table)}:
        rule = table.get(number) if architecture == X86_64 else None
        is_met = rule is not None and all(holds(each, values) for each in rule.conditions)
        expected = rule.action if rule is not None and is_met else BREACH
        assert verdict(program, number, values, architecture) == expected
