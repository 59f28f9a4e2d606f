"""Which objects belong to a commit, by dates of one second: against a bucket whose every moment is known."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobster_zarr.errors import ConflictError, NotFoundError
from lobster_zarr.history import Entry, History

ROOT, SCRATCH = "zarr.json", "scratch"
KEYS = ("a", "b", "c/0")
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dataclass
class Bucket:
    """Keeps versions as S3 does, and of each commit what was there."""

    ticks: Any
    second: float = 0
    past: dict[str, list[Entry]] = field(default_factory=dict)
    """By key, in the order in which it happened."""
    live: dict[str, str] = field(default_factory=dict)
    truths: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each commit the content of its objects."""
    ids: Any = field(default_factory=itertools.count)

    def put(self, key: str, content: str) -> str:
        return self._add(key, content)

    def delete(self, key: str) -> None:
        self._add(key, None)

    def _add(self, key: str, content: str | None) -> str:
        self.second += next(self.ticks)
        at, version = START + dt.timedelta(seconds=int(self.second)), f"v{next(self.ids):04}"
        entry = Entry(key, version, at, len(content or ""), content or "", is_deletion=content is None)
        self.past.setdefault(key, []).append(entry)
        self.live.pop(key, None)
        if content is not None:
            self.live[key] = content
        return version

    def clear(self) -> None:
        for key in sorted(self.live, key=lambda k: k != ROOT):  # the root first
            self.delete(key)

    def commit(self, contents: dict[str, str], *, is_broken_off: bool = False) -> None:
        """Replace the store as this package does it."""
        self.clear()
        for key, content in contents.items():
            self.put(key, content)
        if is_broken_off:
            return
        self.put(SCRATCH, "scratch")
        self.delete(SCRATCH)
        self.truths[self.put(ROOT, "root")] = dict(contents)

    def history(self) -> History:
        versions, deletions = [], []
        for past in self.past.values():
            for entry in reversed(past):
                told = Entry(**vars(entry) | {"is_latest": entry is past[-1]})
                (deletions if entry.is_deletion else versions).append(told)
        return History((*versions, *deletions), ROOT)


contents = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(["1", "22", "333"]), min_size=1)
deeds = st.lists(st.tuples(st.sampled_from(["commit", "break off", "remove"]), contents), min_size=1, max_size=6)


def done(deeds: list[tuple[str, dict[str, str]]], ticks: Any) -> Bucket:
    bucket = Bucket(ticks)
    for what, store in deeds:
        if what == "remove":
            bucket.clear()
        else:
            bucket.commit(store, is_broken_off=what == "break off")
    return bucket


@given(deeds, st.integers(0, 2**32), st.sampled_from([0.02, 0.1, 0.3, 1.0]))
def test_a_state_is_the_one_that_was_or_is_refused(deeds, seed, pace) -> None:
    import random

    random = random.Random(seed)
    bucket = done(deeds, iter(lambda: random.random() * pace, None))
    history = bucket.history()
    assert {c.version for c in history.commits} == set(bucket.truths)
    for commit in history.commits:
        truth = bucket.truths[commit.version]
        others = [e for e in history.by_key[ROOT] if e.at == commit.at and e is not commit]
        try:
            state = history.state(commit, set(truth))
        except ConflictError:
            assert others, "refused although its root was written and deleted in other seconds"
            continue
        found = {key: entry.etag for key, entry in state.items() if key in truth}
        assert found == truth, commit
        assert state[ROOT] is commit


@given(deeds)
def test_where_every_request_has_its_second_nothing_is_refused(deeds) -> None:
    bucket = done(deeds, itertools.repeat(1.0))
    history = bucket.history()
    for commit in history.commits:
        truth = bucket.truths[commit.version]
        for named in (set(truth), None):  # this package's own stores, and others
            state = history.state(commit, named)
            assert {k: e.etag for k, e in state.items() if k != ROOT} == truth


@given(deeds, st.sampled_from([0.05, 0.3]))
def test_a_store_of_others_is_as_it_was_at_the_end_of_the_second(deeds, pace) -> None:
    bucket = done(deeds, itertools.repeat(pace))
    history = bucket.history()
    for commit in history.commits:
        try:
            state = history.state(commit)
        except ConflictError:
            continue
        for key, past in bucket.past.items():
            before = [entry for entry in past if entry.at <= commit.at]
            if key != ROOT:
                found = state.get(key)
                assert (found and found.etag) == (before[-1].etag or None if before else None)


def test_an_overwrite_right_after_a_commit_leaves_what_is_beyond_doubt() -> None:
    """All in one second: of the first commit each key was written once, of the second too."""
    bucket = Bucket(itertools.repeat(0.0))
    bucket.commit({"a": "1", "b": "22"})
    bucket.commit({"a": "333", "c/0": "1"})
    history = bucket.history()
    second, first = history.commits
    assert history.state(second, {"a", "c/0"})["a"].etag == "333"  # its root is the latest
    with pytest.raises(ConflictError, match="'a'"):
        history.state(first, {"a", "b"})
    assert history.state(first, {"b"})["b"].etag == "22"  # of what only one wrote, there is no doubt


def test_a_commit_is_named_by_its_id_or_the_beginning_of_it() -> None:
    told = [Entry(ROOT, version, START) for version in ("abcd1", "abcd2", "null")]
    history = History(tuple(told), ROOT)
    assert history.commit("abcd2", "s3://lab/a.zarr") is told[1]
    assert history.commit("null", "s3://lab/a.zarr") is told[2]
    for wrong, expected in (("abcd", "2 versions"), ("nul", "no version"), ("xyz", "no version")):
        with pytest.raises(NotFoundError, match=expected):
            history.commit(wrong, "s3://lab/a.zarr")
