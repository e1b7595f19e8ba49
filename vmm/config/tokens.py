"""The characters of option strings: quotes, brackets and separators. Sans-I/O.

``key=value,key=[a,b],key="with, comma"``: a separator counts outside double quotes and outside
square brackets; inside quotes only the quote is special, and a doubled one stands for itself.
"""

from collections.abc import Iterator

SPECIAL = frozenset('",[]@')


class UnbalancedError(ValueError):
    """A quote or a bracket that is not closed, or a bracket that was never opened."""


def split(text: str, separator: str = ",", *, nesting: bool = True) -> list[str]:
    """Cut at each separator outside quotes and, unless ``nesting`` is off, outside brackets.

    The pieces keep their quotes and blanks. Raises: UnbalancedError (caller).
    """
    pieces: list[str] = []
    start = depth = 0
    quoted = False
    for index, char in enumerate(text):
        if char == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif char == "[" and nesting:
            depth += 1
        elif char == "]" and nesting:
            depth -= 1
            if depth < 0:
                raise UnbalancedError(text)
        elif char == separator and depth == 0:
            pieces.append(text[start:index])
            start = index + 1
    if quoted or depth:
        raise UnbalancedError(text)
    pieces.append(text[start:])
    return pieces


def dequote(text: str) -> str:
    """Drop the quotes; a doubled quote inside a quoted run gives one."""
    if '"' not in text:
        return text
    return "".join(_unquoted(text))


def _unquoted(text: str) -> Iterator[str]:
    quoted = False
    chars = iter(range(len(text)))
    for index in chars:
        if text[index] != '"':
            yield text[index]
        elif quoted and text[index + 1 : index + 2] == '"':
            next(chars)
            yield '"'
        else:
            quoted = not quoted


def quote(text: str) -> str:
    """Write a text so that it is read back unchanged, with quotes only where they are needed."""
    if text and text == text.strip() and SPECIAL.isdisjoint(text):
        return text
    return '"' + text.replace('"', '""') + '"'


def unbracket(text: str) -> str:
    """Drop one pair of outer brackets, if there is one."""
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1]
    return text
