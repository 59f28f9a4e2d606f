"""What S3 charges: a dated table of list prices, and what a caller puts in its place.

Must not know what is charged for.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from lobster_zarr.errors import FormatError, InvalidArgumentError, NotFoundError, did_you_mean
from lobster_zarr.placement import CLASSES

_TABLE = "prices.json"


@dataclass(frozen=True)
class ClassPrice:
    """Dollars of one storage class.

    Parameters
    ----------
    storage_gb
        A GB and month.
    put_1000, get_1000
        A thousand requests that write and list, or that read.
    retrieval_gb
        A GB that is read, on top of the request; nothing in most classes.
    """

    storage_gb: float
    put_1000: float
    get_1000: float
    retrieval_gb: float


@dataclass(frozen=True)
class Prices:
    """A table of prices in dollars.

    Parameters
    ----------
    as_of, region, source
        Of which month and region they are, and where they were read.
    gb_bytes
        Of a GB.
    egress_gb
        A GB that leaves for the internet.
    monitoring_1000
        A thousand objects in ``INTELLIGENT_TIERING`` and month.
    classes
        By storage class.
    """

    as_of: str
    region: str
    source: str
    gb_bytes: float
    egress_gb: float
    monitoring_1000: float
    classes: Mapping[str, ClassPrice]

    @classmethod
    def of(cls, given: Mapping[str, Any] | str | os.PathLike[str] | None = None) -> Self:
        """Return the table that ships with the package, with what is given in its place.

        Parameters
        ----------
        given
            Some or all of the fields, with ``classes`` as ``{"STANDARD": {"storage_gb": 0.021}}``; or the path of a
            JSON or TOML file that has them.

        Raises
        ------
        NotFoundError, FormatError
            There is no such file, or it is neither.
        InvalidArgumentError
            An unknown field or class, or a price that is no number.
        """
        table = json.loads(files("lobster_zarr").joinpath(_TABLE).read_text(encoding="utf-8"))
        own = _read(Path(given)) if isinstance(given, (str, os.PathLike)) else dict(given or {})
        _check_names("the prices", own, [f.name for f in fields(cls)])
        classes = own.pop("classes", {})
        if not isinstance(classes, Mapping):
            raise InvalidArgumentError(f"classes in the prices is {classes!r}, expected prices by storage class.")
        _check_names("classes", classes, CLASSES)
        for name, price in classes.items():
            if not isinstance(price, Mapping):
                raise InvalidArgumentError(f"The price of {name} is {price!r}, expected fields such as storage_gb.")
            _check_names(name, price, [f.name for f in fields(ClassPrice)])
            table["classes"][name] |= price
        table |= own
        for name in ("gb_bytes", "egress_gb", "monitoring_1000"):
            _check_price(name, table[name], above=0 if name == "gb_bytes" else None)
        for name, price in table["classes"].items():
            for what, dollars in price.items():
                _check_price(f"{what} of {name}", dollars)
        made = {name: ClassPrice(**price) for name, price in table.pop("classes").items()}
        return cls(classes=made, **table)


def _check_names(where: str, given: Mapping[str, Any], known: Any) -> None:
    for name in given:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise InvalidArgumentError(f"Unknown {name!r} in {where}, expected {', '.join(known)}.{hint}")


def _check_price(name: str, value: Any, above: float | None = None) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < float("inf") or value == above:
        raise InvalidArgumentError(f"{name} in the prices is {value!r}, expected a number, in dollars.")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFoundError(f"The prices at {path} cannot be read: {error.strerror}. Check the path.") from error
    try:
        told = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise FormatError(f"The prices at {path} are no {path.suffix[1:] or 'JSON'} ({error}).") from error
    if not isinstance(told, dict):
        raise FormatError(f"The prices at {path} are {type(told).__name__}, expected fields such as egress_gb.")
    return told
