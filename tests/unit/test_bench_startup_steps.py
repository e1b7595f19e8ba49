"""The marks that are set on a program from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from importlib import import_module

import pytest

from tools.bench.startup_steps import MACHINE_STEPS, MachineStep, Marks


class Program:
    """Something with a call and a context to mark."""

    def double(self, value: int) -> int:
        return 2 * value

    @contextmanager
    def opened(self) -> Iterator[str]:
        yield "open"


def steps(marks: Marks) -> list[str]:
    return [step for step, _, _ in marks.reached]


def test_call_is_marked_when_it_has_returned() -> None:
    marks, program = Marks(), Program()
    marks.after(program, "double", "doubled")

    assert program.double(4) == 8
    assert steps(marks) == ["interpreter runs", "doubled"]


def test_context_is_marked_when_it_is_entered() -> None:
    marks, program = Marks(), Program()
    marks.once_entered(program, "opened", "entered")

    with program.opened() as value:
        assert (value, steps(marks)[1:]) == ("open", ["entered"])
    assert steps(marks)[1:] == ["entered"]


def test_marks_are_in_the_order_of_the_clock() -> None:
    marks = Marks()
    marks.add("one")
    marks.add("two")

    times = [at for _, at, _ in marks.reached]
    processor_times = [at for _, _, at in marks.reached]
    assert times == sorted(times)
    assert processor_times == sorted(processor_times)


@pytest.mark.parametrize("step", MACHINE_STEPS, ids=lambda step: step.name)
def test_step_is_a_call_that_the_program_has(step: MachineStep) -> None:
    found = reduce(getattr, step.name.split("."), import_module(step.module))

    assert callable(found)
