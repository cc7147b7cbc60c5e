"""Text before it goes to a terminal or into a table: what people gave, such as names, and numbers of bytes."""

from __future__ import annotations

import unicodedata

UNPRINTED = ("Cc", "Cs", "Cf")  # kinds of characters that break, hide or reorder a line
KEPT = "\u200c\u200d"  # of these, those that join letters


def printable(text: str, keep: str = "\n\t") -> str:
    """Text in which characters that are not printed are written out, such as \\x1b, which commands a terminal.

    Args:
        text: on any number of lines.
        keep: characters to leave as they are.

    >>> printable("a name" + chr(27) + "[8m")
    'a name\\\\x1b[8m'
    """
    return "".join(
        repr(one)[1:-1] if unicodedata.category(one) in UNPRINTED and one not in (*KEPT, *keep) else one for one in text
    )


def bytes_in_words(count: int) -> str:
    """A number of bytes with the unit that suits it, in powers of ten.

    >>> bytes_in_words(950), bytes_in_words(43_210), bytes_in_words(1_234_567_890)
    ('950 bytes', '43.2 kB', '1.2 GB')
    """
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:,.1f} {unit}"
    return f"{count} bytes"
