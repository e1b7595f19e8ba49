"""What both clients share: how a method is made of a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def named_after(call: Callable[..., object], method: F) -> F:
    """Give a method the name, docstring and parameters of the call that it sends."""
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(call)
    parameters = [own, *signature.parameters.values()]
    answer = str(signature.return_annotation).removeprefix("Call[").removesuffix("]")
    method.__name__ = method.__qualname__ = call.__name__
    method.__doc__ = call.__doc__
    method.__dict__["__signature__"] = signature.replace(
        parameters=parameters, return_annotation=answer
    )
    return method
