"""Lifecycle rules: what S3 moves to cheaper classes, and what it deletes, by age and prefix.

Knows which moves S3 makes, and which harm stores. Rules are merged by their
ID. Must not know what objects hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lobster_zarr.bucketchange import Change, change
from lobster_zarr.errors import InvalidArgumentError, did_you_mean
from lobster_zarr.placement import BILLED_FROM_BYTES, INFREQUENT, LEAST_DAYS, NOT_AT_ONCE
from lobster_zarr.report import positive
from lobster_zarr.s3bucket import LIFECYCLE, administered, bucket_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/lifecycle-transition-general-considerations.html
_RANK = {
    "STANDARD_IA": 0,
    "INTELLIGENT_TIERING": 1,
    "ONEZONE_IA": 2,
    "GLACIER_IR": 2,
    "GLACIER": 3,
    "DEEP_ARCHIVE": 4,
}
"""S3 moves objects to a class of a higher rank only."""
_NOT_BEFORE_DAYS = {"STANDARD_IA": 30, "ONEZONE_IA": 30}
_ACTIONS = (
    "Transitions",
    "Expiration",
    "NoncurrentVersionTransitions",
    "NoncurrentVersionExpiration",
    "AbortIncompleteMultipartUpload",
)


@dataclass(frozen=True)
class Rule:
    """A lifecycle rule; at least one of its actions is to be given.

    Parameters
    ----------
    id
        Its name: a rule of the same name is replaced.
    prefix
        Of the keys that it is for; all by default.
    tier
        Days after which objects move, by storage class: ``{"STANDARD_IA": 30, "GLACIER_IR": 90}``.
    expire_days
        Days after which objects are deleted; in a versioned bucket, become old versions.
    noncurrent_days
        Days after which versions that were replaced or deleted go.
    abort_days
        Days after which the parts of an upload that never ended go.
    """

    id: str
    prefix: str = ""
    tier: Mapping[str, int] = field(default_factory=dict)
    expire_days: int | None = None
    noncurrent_days: int | None = None
    abort_days: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the rule in S3's own form."""
        moves = [{"Days": days, "StorageClass": name} for name, days in self.tier.items()]
        actions = {
            "Transitions": moves or None,
            "Expiration": self.expire_days and {"Days": self.expire_days},
            "NoncurrentVersionExpiration": self.noncurrent_days and {"NoncurrentDays": self.noncurrent_days},
            "AbortIncompleteMultipartUpload": self.abort_days and {"DaysAfterInitiation": self.abort_days},
        }
        for name in ("expire_days", "noncurrent_days", "abort_days"):
            if getattr(self, name) is not None:
                positive(getattr(self, name), name)
        named = {"ID": self.id, "Status": "Enabled", "Filter": {"Prefix": self.prefix}}
        return named | {name: action for name, action in actions.items() if action is not None}


def lifecycle(
    name: str,
    rules: Rule | Mapping[str, Any] | Iterable[Rule | Mapping[str, Any]],
    *,
    archive: bool = False,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Change:
    """Put lifecycle rules in force; those of other names stay.

    Parameters
    ----------
    name
        ``lab`` or ``s3://lab``.
    rules
        One or several: `Rule`, or S3's own JSON, a rule or a whole ``{"Rules": […]}`` (where ``Id`` passes for ``ID``).
    archive
        Allow moves to ``GLACIER`` and ``DEEP_ARCHIVE``, where a store cannot be read until it is restored.
    dry_run
        Only tell what would change.
    storage_options
        As for :func:`lobster_zarr.open`.

    Raises
    ------
    InvalidArgumentError
        A rule that S3 would not take, or one that makes stores unreadable without `archive`.
    StorageError
        S3 refused or failed.
    """
    new = list(_documents(rules))
    names = [rule["ID"] for rule in new]
    if not new or len(set(names)) < len(names):
        raise InvalidArgumentError(f"The rules are {names}, expected one or more, each with an ID of its own.")
    warnings = [warning for rule in new for warning in _checked(rule, archive=archive)]
    with administered(bucket_name(name), storage_options) as bucket:
        return change(bucket, LIFECYCLE, new, empty={}, warnings=warnings, dry_run=dry_run)


def _documents(rules: Any) -> Iterator[dict[str, Any]]:
    if isinstance(rules, Mapping) and "Rules" in rules:
        rules = rules["Rules"]
    rules = [rules] if isinstance(rules, (Rule, Mapping)) else rules
    if not isinstance(rules, Iterable):
        raise InvalidArgumentError(f"{rules!r} are no lifecycle rules, expected a list of them.")
    for rule in rules:
        if not isinstance(rule, (Rule, Mapping)):
            raise InvalidArgumentError(f"{rule!r} is no lifecycle rule, expected a Rule or a dict as S3 has it.")
        given = rule.to_dict() if isinstance(rule, Rule) else dict(rule)
        if "Id" in given:  # as documents have it, which S3 itself would refuse
            given["ID"] = given.pop("Id")
        if not isinstance(given.get("ID"), str) or not 0 < len(given["ID"]) <= 255:
            raise InvalidArgumentError(f"A lifecycle rule has the ID {given.get('ID')!r}, expected 1 to 255 letters.")
        given.setdefault("Status", "Enabled")
        if "Prefix" not in given:  # of the older form
            given.setdefault("Filter", {"Prefix": ""})
        _check_forms(given)
        yield given


def _check_forms(rule: Mapping[str, Any]) -> None:
    """Refuse a rule whose parts are not of the form that S3 gives them."""
    for name in ("Filter", *_ACTIONS):
        part, is_list = rule.get(name, {}), name.endswith("Transitions") and name in rule
        parts = part if is_list and isinstance(part, list) else [None if is_list else part]
        if not all(isinstance(one, Mapping) and isinstance(one.get("And", {}), Mapping) for one in parts):
            form = "a list of mappings" if is_list else "a mapping"
            raise InvalidArgumentError(f"The lifecycle rule {rule['ID']!r}: {name} is {part!r}, expected {form}.")


def _checked(rule: Mapping[str, Any], *, archive: bool) -> Iterator[str]:
    """Refuse what S3 does not do or harms stores; yield what a reader should know."""
    what = f"The lifecycle rule {rule['ID']!r}"
    if not any(rule.get(action) for action in _ACTIONS):
        raise InvalidArgumentError(f"{what} does nothing, expected days to move, delete or abort after.")
    moves = [(move.get("StorageClass"), move.get("Days")) for move in rule.get("Transitions", ())]
    old = [(move.get("StorageClass"), None) for move in rule.get("NoncurrentVersionTransitions", ())]
    for name, _ in [*moves, *old]:
        if name not in _RANK:
            hint = did_you_mean(str(name), _RANK)
            raise InvalidArgumentError(f"{what} moves to {name!r}, expected one of {', '.join(_RANK)}.{hint}")
        if name in NOT_AT_ONCE and not archive:
            raise InvalidArgumentError(
                f"{what} moves to {name}, from which a store cannot be read until it is restored, for hours. "
                "Use GLACIER_IR; for files that are archived, pass archive=True."
            )
    days = rule.get("Expiration", {}).get("Days")
    yield from _checked_days(what, [(name, after) for name, after in moves if after is not None], days)
    if _least_bytes(rule) < BILLED_FROM_BYTES and any(name in INFREQUENT for name, _ in moves):
        yield (
            f"{rule['ID']!r} moves objects of less than 128 KiB, which are billed as 128 KiB there: leave out "
            "ObjectSizeGreaterThan, and S3 moves none below"
        )
    if days is not None and not _prefix(rule):
        yield f"{rule['ID']!r} has no prefix: everything in the bucket is deleted {days} days after it was written"


def _checked_days(what: str, moves: Sequence[tuple[str, Any]], expiration: int | None) -> Iterator[str]:
    """Refuse days that S3 does not take; yield where a class is billed longer than it is used."""
    for name, days in moves:
        least = _NOT_BEFORE_DAYS.get(name, 0)
        if isinstance(days, bool) or not isinstance(days, int) or days < least:
            raise InvalidArgumentError(f"{what} moves to {name} after {days!r} days, expected {least} or more.")
    moves = sorted(moves, key=lambda move: move[1])
    for (name, days), (later, after) in pairwise(moves):
        if days == after or _RANK[name] >= _RANK[later]:
            raise InvalidArgumentError(
                f"{what} moves to {name} after {days} days and to {later} after {after}, expected days that rise "
                f"in the order {', '.join(_RANK)} (S3 moves nothing back, nor from ONEZONE_IA to GLACIER_IR)."
            )
    if expiration is not None:
        positive(expiration, f"{what}: Expiration Days")
    if moves and expiration is not None and expiration <= moves[-1][1]:
        name, days = moves[-1]
        raise InvalidArgumentError(
            f"{what} deletes after {expiration} days and moves to {name} after {days}, expected to delete later."
        )
    ends = [*(days for _, days in moves[1:]), *([expiration] if expiration is not None else [])]
    for (name, days), end in zip(moves, ends, strict=False):
        if end - days < LEAST_DAYS.get(name, 0):
            yield f"{name} is billed for {LEAST_DAYS[name]} days at least, and objects stay there for {end - days}"


def _prefix(rule: Mapping[str, Any]) -> str:
    kept = rule.get("Filter", {})
    return str(rule.get("Prefix") or kept.get("Prefix") or kept.get("And", {}).get("Prefix") or "")


def _least_bytes(rule: Mapping[str, Any]) -> int:
    """Return the size from which a rule's own filter has it move objects; without one, S3 moves from 128 KiB on."""
    kept = rule.get("Filter", {})
    found = kept.get("ObjectSizeGreaterThan", kept.get("And", {}).get("ObjectSizeGreaterThan"))
    return found + 1 if isinstance(found, int) else BILLED_FROM_BYTES
