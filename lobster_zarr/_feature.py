"""How a predicate spells a feature (gene) of a matrix: ``CD3D``, ``X['HLA-DRA']``, ``layers['counts'].CD3D``.

This module knows the spellings. It must not know which features and matrices exist, nor how they are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_SPELLED: Final = re.compile(
    r"(?:X|layers\[(?P<open>['\"])(?P<layer>.+?)(?P=open)\])(?:\.(?P<dotted>.+)|\[(?P<quote>['\"])(?P<name>.*)(?P=quote)\])",
    re.DOTALL,
)


@dataclass(frozen=True)
class Feature:
    """One feature of one matrix.

    Attributes
    ----------
    path
        Of the matrix: ``X``, ``layers/counts``.
    name
        Among the names of var.
    """

    path: str
    name: str

    @classmethod
    def of(cls, spelled: str) -> Feature:
        """Read a spelling; a name without a matrix is a feature of X."""
        found = _SPELLED.fullmatch(spelled)
        if found is None:
            return cls("X", spelled)
        path = "X" if found["layer"] is None else f"layers/{found['layer']}"
        return cls(path, found["dotted"] if found["name"] is None else found["name"])

    @property
    def matrix(self) -> str:
        """The matrix as a predicate spells it."""
        return self.path if self.path == "X" else f"layers['{self.path.removeprefix('layers/')}']"

    @property
    def spelled(self) -> str:
        """The one spelling that stands for it as a column: no obs column is likely to be called that."""
        return f"X['{self.name}']" if self.path == "X" else f"{self.matrix}.{self.name}"
