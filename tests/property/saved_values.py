"""Values of the models of saved states, made from their annotations."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Le
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from vmm.saved import SavedState

Values = st.SearchStrategy[Any]

SHORT = 3
"""Elements of a list or bytes that a state gets; none of its models has a limit of its own."""


def states(model: type[SavedState]) -> Values:
    """States of a model."""
    hints = get_type_hints(model, include_extras=True)
    fields = st.fixed_dictionaries({name: _of(hints[name]) for name in model.model_fields})
    return fields.map(lambda values: model(**values))


def _of(hint: Any) -> Values:  # noqa: ANN401  any annotation
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _limited(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return st.one_of(*(_of(each) for each in arguments))
    if origin is tuple:
        return _tuple(arguments)
    if origin is dict:
        return st.dictionaries(_of(arguments[0]), _of(arguments[1]), max_size=SHORT)
    if hint is NoneType:
        return st.none()
    if hint is bytes:
        return st.binary(max_size=SHORT)
    if hint is str:
        return st.text(max_size=SHORT)
    if hint is int:
        return st.integers(0, 1 << 32)
    if hint is bool:
        return st.booleans()
    if issubclass(hint, SavedState):
        return states(hint)
    # A named tuple of numbers, such as a leaf of CPUID.
    return st.builds(hint, *(st.integers(0, (1 << 32) - 1) for _ in hint._fields))


def _limited(hint: Any, more: tuple[Any, ...]) -> Values:  # noqa: ANN401  any annotation
    limits = [limit for each in more if isinstance(each, FieldInfo) for limit in each.metadata]
    if hint is int:
        low = next((int(str(limit.ge)) for limit in limits if isinstance(limit, Ge)), 0)
        high = next(int(str(limit.le)) for limit in limits if isinstance(limit, Le))
        return st.integers(low, high) | st.sampled_from([low, high])
    patterns = [limit.pattern for limit in limits if getattr(limit, "pattern", None)]
    if patterns:
        return st.from_regex(patterns[0], fullmatch=True)
    if hint is str:
        return st.text("abc", max_size=SHORT)
    return _of(hint)


def _tuple(arguments: tuple[Any, ...]) -> Values:
    if arguments[-1] is Ellipsis:
        return st.lists(_of(arguments[0]), max_size=SHORT).map(tuple)
    return st.tuples(*(_of(each) for each in arguments))
