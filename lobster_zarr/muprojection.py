"""What a selection of a MuData brings of each modality and of the global elements, by what a user names.

A list of names restricts everything: ``counts`` wherever something has that name,
``rna:counts`` that of one modality. Must not read anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lobster_zarr._clause import short
from lobster_zarr.errors import InvalidArgumentError, NotFoundError, did_you_mean
from lobster_zarr.projection import Projection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lobster_zarr.element import StoreReader
    from lobster_zarr.joined import MultimodalReader

FLAGS = ("X", "uns", "raw")
ALL = "all"
WHOLE = ""
"""The owner of the global elements."""


def projections(data: MultimodalReader, elements: Mapping[str, Any]) -> dict[str, Projection]:
    """Tell by modality, and for the global elements under ``WHOLE``, what is wanted.

    Parameters
    ----------
    data
        The store.
    elements
        Fields of :class:`Projection`; names, or a mapping of modality to names.

    Raises
    ------
    InvalidArgumentError, NotFoundError
        No such field, or nothing of that name; near names are offered.
    """
    known = [f.name for f in fields(Projection)]
    chosen: dict[str, dict[str, Any]] = {owner: {} for owner in (WHOLE, *data.modalities)}
    for field, given in elements.items():
        if field not in known:
            msg = f"query has no option {field!r}.{did_you_mean(field, known)} Options: {known}"
            raise InvalidArgumentError(msg)
        if isinstance(given, Mapping):
            for name in given:
                if name not in data.modalities:
                    msg = f"{field} names {name!r}, which is no modality.{did_you_mean(name, data.modalities)}"
                    raise NotFoundError(f"{msg} It has: {list(data.modalities)}")
            _check_flags(field, given.values())
            for owner, own in given.items():
                chosen[owner][field] = own if field in FLAGS else _own(data, field, own, [owner])[owner]
            continue
        _check_flags(field, [given])
        split = dict.fromkeys(chosen, given) if field in FLAGS else _own(data, field, given, list(chosen))
        for owner, own in split.items():
            chosen[owner][field] = own
    whole = chosen.pop(WHOLE)
    for group in ("obsm", "varm"):  # the members that mudata derives from the maps
        if whole.get(group) is None:
            whole[group] = _members(data, WHOLE, group)
    return {WHOLE: Projection(**whole), **{name: Projection(**own) for name, own in chosen.items()}}


def _check_flags(field: str, given: Iterable[Any]) -> None:
    for value in given:
        if field in FLAGS and not isinstance(value, bool):
            msg = f"{field} is {value!r}; expected true or false, or a dict of modality to these."
            raise InvalidArgumentError(msg)


def _own(data: MultimodalReader, field: str, given: Any, owners: Sequence[str]) -> dict[str, list[str] | None]:
    """Share names out to those that have them."""
    if given is None or given == ALL:
        return dict.fromkeys(owners, None)
    if isinstance(given, str) or not isinstance(given, Iterable) or not all(isinstance(name, str) for name in given):
        msg = f"{field} is {given!r}; expected a list of names{f': [{given!r}]' if isinstance(given, str) else ''}."
        raise InvalidArgumentError(msg)
    members = {owner: _members(data, owner, field) for owner in owners}
    own: dict[str, list[str] | None] = {}
    for owner in owners:
        own[owner] = [m for m in (n.removeprefix(f"{owner}:") for n in given) if m in members[owner]]
    pairs = [(owner, member) for owner in owners for member in members[owner]]
    spelled = {member for _, member in pairs} | {f"{owner}:{member}" for owner, member in pairs if owner}
    for name in given:
        if name not in spelled:
            msg = f"{field.removesuffix('_columns')} has no {name!r}.{did_you_mean(str(name), sorted(spelled))}"
            raise NotFoundError(f"{msg} It has: {short(sorted(spelled))}")
    return own


def _members(data: MultimodalReader, owner: str, field: str) -> list[str]:
    reader: StoreReader = data.modalities[owner] if owner else data.root
    if field.endswith("_columns"):
        return list(getattr(reader, field.removesuffix("_columns")).columns)
    found = reader.tree.children(field)
    return found if owner else [name for name in found if name not in data.modalities]


def of_modalities(data: MultimodalReader, var: Any) -> tuple[Any, dict[str, Any]]:
    """Tell what selects on the global var from what selects on the modalities' own.

    Returns
    -------
    tuple
        A selector of global var, None for all; by modality, a selector of its var.
    """
    if not isinstance(var, Mapping) or not any(name in data.modalities for name in var):
        return (None, {}) if isinstance(var, str) and var == ALL else (var, {})
    strange = [name for name in var if name not in data.modalities]
    if strange:
        msg = f"var names modalities and {strange[0]!r}, which is none.{did_you_mean(str(strange[0]), data.modalities)}"
        raise NotFoundError(f"{msg} It has: {list(data.modalities)}")
    return None, {name: own for name, own in var.items() if not (own is None or (isinstance(own, str) and own == ALL))}
