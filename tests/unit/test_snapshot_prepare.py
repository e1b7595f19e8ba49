"""What is made ready before a VM is saved or brought back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from vmm.saved import SavedState
from vmm.snapshot.prepare import prepare_to_arrive, prepare_to_restore, prepare_to_save


@pytest.mark.parametrize("prepare", [prepare_to_save, prepare_to_arrive, prepare_to_restore])
def test_models_of_states_are_built_also_below_a_base_of_their_own(
    prepare: Callable[[], Iterable[Any] | None],
) -> None:
    class Timer(SavedState):
        ends_at: int

    class PeriodicTimer(Timer):
        period: int

    assert not PeriodicTimer.__pydantic_complete__

    for _ in prepare() or ():
        pass

    assert Timer.__pydantic_complete__
    assert PeriodicTimer.__pydantic_complete__
