"""What an argument must be."""

import operator
from pathlib import Path
from types import UnionType

__all__ = ["existing_folder", "of_kind", "real", "whole"]


def existing_folder(name: str, value: Path) -> Path:
    """`value`, a folder that exists.

    Raises:
        ValueError: it is none.
    """
    if not value.is_dir():
        raise ValueError(f"`{name}` must be a folder, got {str(value)!r}")
    return value


def of_kind(name: str, value: object, kind: type | UnionType, rule: str) -> None:
    """Nothing, of a value of this kind, for which `rule` has words.

    Raises:
        ValueError: it is of another.

    >>> of_kind("model", "books27", int, "a number here")
    Traceback (most recent call last):
    ValueError: `model` must be a number here, got 'books27'
    """
    if not isinstance(value, kind):
        short = isinstance(value, str | int | float | None)
        got = repr(value) if short else type(value).__name__  # a model's text has many lines
        raise ValueError(f"`{name}` must be {rule}, got {got}")


def real(name: str, value: object) -> float:
    """`value` as a float.

    Raises:
        ValueError: it is no number.

    >>> real("temperature", 1)
    1.0
    """
    if not hasattr(value, "__float__"):  # as text has not, which `float` would read
        raise ValueError(f"`{name}` must be a number, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def whole(name: str, value: object, least: int | None = None) -> int:
    """`value` as an int.

    Raises:
        ValueError: it is no whole number, below `least`, or more than 64 bits hold.

    >>> whole("rounds", 4, least=1)
    4
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"`{name}` must be a whole number, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"`{name}` must be at least {least}, got {number}")
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"`{name}` must fit into 64 bits with its sign, got {number}")
    return number
