"""CI has 15 minutes for everything: there it takes half of the drawn examples, and of the modules that take longest
every second case of a test. A run by hand takes all.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

IN_CI = bool(os.environ.get("CI"))
HALVED = {
    "test_aggregate", "test_backends", "test_convert", "test_lazy", "test_mucluster", "test_muconvert", "test_muexport",
    "test_multimodal", "test_muverify",
}  # fmt: skip


def examples(n: int) -> int:
    """Return how many examples are drawn where a run by hand draws `n`."""
    return -(-n // 2) if IN_CI else n


def halve(items: list[pytest.Item]) -> list[pytest.Item]:
    """Take every second case of each test of those modules out of `items`, and return them."""
    seen: Counter[str] = Counter()
    left = []
    for item in items if IN_CI else ():
        if item.path.stem in HALVED and hasattr(item, "callspec"):
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            left += [item] * (seen[test] % 2 == 0)
    gone = set(left)
    items[:] = [item for item in items if item not in gone]
    return left
