"""The sentences that say why a model refused its input: where, what came, what to give."""

from collections.abc import Iterator

from pydantic import ValidationError
from pydantic_core import ErrorDetails

LONGEST_ECHO = 60
"""Characters of a refused value that are repeated to its sender."""

_WANTED = {
    "missing": "it is required",
    "extra_forbidden": "this object has no such field; remove it",
    "int_type": "give a whole number",
    "bool_type": "give true or false",
    "string_type": "give a text",
    "tuple_type": "give a list",
    "model_type": "give an object",
    "dict_type": "give an object",
}


def refusals(error: ValidationError) -> Iterator[str]:
    """Yield one sentence a fault, each with its JSON path."""
    for fault in error.errors(include_url=False):
        path = path_text(fault["loc"])
        if fault["type"] == "missing":
            yield f"missing field `{fault['loc'][-1]}`: {path} is required; give it"
        elif isinstance(fault["input"], dict) and fault["type"] == "value_error":
            yield f"{path}: {wanted(fault)}" if path else wanted(fault)
        else:
            yield f"{path or 'the body'} is {echo(fault['input'])}; {wanted(fault)}"


def wanted(fault: ErrorDetails) -> str:
    """Say what would have been accepted."""
    context = fault.get("ctx", {})
    match fault["type"]:
        case "greater_than_equal":
            return f"give at least {context['ge']}"
        case "less_than_equal":
            return f"give at most {context['le']}"
        case "enum":
            return f"give {context['expected']}"
        case "value_error":
            return str(context["error"])
        case kind:
            return _WANTED.get(kind, fault["msg"])


def path_text(place: tuple[int | str, ...]) -> str:
    """Write a place in a document: ``disks[0].num_queues``."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def echo(value: object) -> str:
    """Show a refused value as JSON would, shortened."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case dict():
            return "an object"
        case list() | tuple():
            return "a list"
        case _:
            text = repr(value)
            return text if len(text) <= LONGEST_ECHO else f"{text[:LONGEST_ECHO]}…"
