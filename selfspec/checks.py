"""What a whole number must be."""

import operator

__all__ = ["whole"]


def whole(name: str, value: object, least: int | None = None) -> int:
    """`value` as an int.

    Raises:
        ValueError: it is no whole number, or below `least`.

    >>> whole("rounds", 4, least=1)
    4
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"`{name}` must be a whole number, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"`{name}` must be at least {least}, got {number}")
    return number
