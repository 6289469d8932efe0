"""The one door to a person's screen: text of others is shown, never obeyed.

Data, a model's answers and names of files may hold escape sequences, which move the cursor, rename the window or
hide what follows, and square brackets, which rich reads as styles. A `Screen` shows the first as visible escapes
and takes no markup from strings: styles are given beside a text (`style=`, `rich.text.Text`), not in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters of ASCII and Latin-1 but tab and newline, and halves of characters that cannot be written."""


def safe(text: str) -> str:
    r"""The text with what a terminal would obey written out.

    >>> print(safe("red: \x1b[31m, bell: \x07, \x9b2J, a line\n of its own"))
    red: \x1b[31m, bell: \x07, \x9b2J, a line
     of its own
    """
    return _UNSAFE.sub(_written_out, text)


def _written_out(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def json_text(value: Any, indent: int | None = 2) -> str:
    r"""JSON with its letters as they are, and every character that a terminal would obey escaped.

    >>> print(json_text({"字": "\x9b2J\x7f"}, indent=None))
    {"字": "\u009b2J\u007f"}
    """
    made = json.dumps(value, ensure_ascii=False, indent=indent)
    return re.sub(r"[\x7f-\x9f\ud800-\udfff]", lambda match: f"\\u{ord(match.group()):04x}", made)


class Screen(Console):
    """rich's console for texts of others; whatever is printed on it, tables and live lines too, is made safe."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    def render_str(self, text: str, **how: Any) -> Text:
        """See `rich.console.Console`; made safe before it is laid out, so that columns stay straight."""
        return super().render_str(safe(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `rich.console.Console`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(safe(segment.text), segment.style)

    def say(self, text: str, style: str = "") -> None:
        """One line (or more, where the text has them), not wrapped."""
        self.print(Text(safe(text), style=style), soft_wrap=True)
