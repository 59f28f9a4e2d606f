"""Where something lies and how to get at it, in a form that may travel: in a pickle, a task, a log.

Secrets stay behind: :mod:`lobster_zarr.agent` lends them to this user's processes
on this machine, and other machines use credentials of their own. Must not open
anything.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lobster_zarr.agent import borrow, lend
from lobster_zarr.location import Access, Location

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping


@dataclass(frozen=True)
class Address:
    """A URI and its options, without secrets.

    Parameters
    ----------
    uri
        Without user and query; a local path is absolute.
    options
        The options that may be shown.
    lent
        Reference under which the secret ones can be borrowed; empty where there are none.
    """

    uri: str
    options: Mapping[str, Any]
    lent: str

    @classmethod
    def of(cls, uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Self:
        """Take the address of what a caller named, and lend the secrets that were passed."""
        return cls.from_parts(Location.of(uri), Access.of(storage_options))

    @classmethod
    def from_parts(cls, where: Location, access: Access) -> Self:
        """As `of`, from what was parsed already."""
        uri = str(Path(where.root).absolute()) if where.scheme == "file" else str(where)
        secret = access.secrets() | ({"uri": where.url} if where.is_secret else {})
        return cls(uri, access.public(), lend(secret) if secret else "")

    @classmethod
    def taken(cls, state: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Take the address out of a state that has its fields among others; return the others too."""
        names = [f.name for f in fields(cls)]
        return cls(*(state[name] for name in names)), {k: v for k, v in state.items() if k not in names}

    def below(self, path: str) -> Address:
        """Return the address of a part of a store; an empty path is the store itself."""
        if not path:
            return self
        uri, options = self.borrow()
        where = Location.of(uri)
        if where.scheme in {"file", "memory"}:
            return Address.from_parts(replace(where, root=f"{where.root}/{path}"), Access.of(options))
        inner = f"{where.prefix}/{path}".lstrip("/")
        return Address.from_parts(replace(where, prefix=inner), Access.of(options))

    def borrow(self) -> tuple[str, dict[str, Any]]:
        """Return the URI and `storage_options` to open with, secrets included where they can be borrowed."""
        options, secret = dict(self.options), borrow(self.lent)
        uri = secret.pop("uri", self.uri)
        return uri, options | {"client_kwargs": {"verify": options.pop("verify")}} | secret

    @property
    def is_shared(self) -> bool:
        """Whether another process can reach it at all."""
        return Location.of(self.uri).scheme != "memory"


class KeptOptions:
    """`storage_options` for an object that lives long: its text and pickle hold no secrets.

    Parameters
    ----------
    storage_options
        As for `lobster_zarr.open`.

    Raises
    ------
    InvalidArgumentError
        An unknown option.
    """

    def __init__(self, storage_options: Mapping[str, Any] | None = None) -> None:
        Access.of(storage_options)
        self._given = dict(storage_options or {})

    def given(self) -> dict[str, Any]:
        """Return the options, secrets included."""
        return dict(self._given)

    def __repr__(self) -> str:
        return f"KeptOptions({sorted(self._given)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _borrowed, (Address.of("memory://options", self._given),)


def _borrowed(address: Address) -> KeptOptions:
    return KeptOptions(address.borrow()[1])
