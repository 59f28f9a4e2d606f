"""The text of a predicate: what Python's parser is given of it, and where in it an error stands.

This module knows characters and their places. It must not know columns or what the text means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ast

EXAMPLE: Final = "Write for example: cell_type == 'T cell' and n_counts > 500"
_PYTHON_TOKENS: Final = re.compile(
    r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|(?P<owner>[^\W\d]\w*:)?`(?P<quoted>[^`]+)`"
    r"|(?P<owned>[^\W\d]\w*:[^\W\d]\w*)|(?P<operator>[&|])|(?P<blank>\s)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Source:
    """A text, and the same text as Python's parser is given it.

    ``&`` and ``|`` become ``and`` and ``or``, so that they bind looser than comparisons, as in pandas'
    `query`; a name in backticks, or one of a modality (``rna:cell_type``), becomes an identifier of the same length
    that nobody writes.
    """

    text: str
    python: str
    origin: tuple[int, ...]  # for each character of `python`, its place in `text`
    quoted: dict[str, str]

    @classmethod
    def of(cls, text: str) -> Source:
        python: list[str] = []
        origin: list[int] = []
        quoted: dict[str, str] = {}
        end = 0
        for match in _PYTHON_TOKENS.finditer(text):
            start, found = match.start(), match.group()
            python.append(text[end:start])
            origin += range(end, start)
            end = match.end()
            if match["quoted"] or match["owned"]:
                found = chr(0x20000 + len(quoted)) * len(found)
                quoted[found] = match["owned"] or f"{match['owner'] or ''}{match['quoted']}"
            elif match["operator"]:
                found = {"&": " and ", "|": " or "}[found]
            elif match["blank"]:
                found = " "
            python.append(found)
            origin += range(start, end) if len(found) == end - start else [start] * len(found)
        origin += range(end, len(text) + 1)
        return cls(text, "".join(python) + text[end:], tuple(origin), quoted)

    def span(self, node: ast.expr) -> tuple[int, int]:
        """Where in `text` a node stands, half-open."""
        line = self.python.encode()
        start = len(line[: node.col_offset].decode())
        stop = len(line[: node.end_col_offset].decode())
        return self.origin[start], self.origin[max(start, stop - 1)] + 1

    def pointer(self, start: int, stop: int) -> str:
        """Two lines that show a place in the text."""
        left = max(0, start - 60)
        line = re.sub(r"\s", " ", self.text[left : left + 110])
        marks = "^" * max(1, min(stop - left, len(line)) - (start - left))
        return f"\n    {line}\n    {' ' * (start - left)}{marks}"
