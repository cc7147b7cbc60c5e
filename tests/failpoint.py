"""A process that ends at a chosen call, as a kill or a loss of power would end it."""

import os
from typing import Any


def die_at(owner: Any, name: str, number: int, moment: str) -> None:
    """End this process, with status 9, before, half through, or after the number-th call of a function from now on.

    Half through is of a function that writes its second argument: it writes the first half.
    """
    real = getattr(owner, name)
    left = number

    def die(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        given = None
        if left or moment == "after":
            given = real(*arguments)
        elif moment == "half":
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if not left:
            os._exit(9)
        return given

    setattr(owner, name, die)
