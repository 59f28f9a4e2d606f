"""H5AD files that are damaged or hostile: each in one way, with the error that is due and what it must name.

Knows the bytes of HDF5 as far as it takes to spoil them. Must not know of
lobster_zarr: errors are named by the names of their classes.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from h5edits import ARRAY, add_column, put
from h5files import Form, Storage, sample, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from h5py import h5d

CHUNKED = Form((Storage("threes", "gzip"),))
LATEST = Form((Storage("threes", "gzip"),), libver="latest")
PLAIN = Form()
BEYOND = 0x7FFF_FFFF_FFFF
_BAD = ("FormatError",)
_LOST = ("ChunkDecodeError", "FormatError")
_OTHER = ("UnsupportedError",)


@dataclass(frozen=True)
class Damage:
    """What is done to a sound file, and what a reader must say of it: an error of these, which names the file too."""

    harm: Callable[[Path], None]
    errors: tuple[str, ...] = _BAD
    names: str = ""
    form: Form = CHUNKED


def damaged(path: Path, damage: Damage) -> Path:
    """Write a sound file, and spoil it."""
    if damage.form not in _SOUND:
        _SOUND[damage.form] = write(sample(), path, damage.form).read_bytes()
    path.write_bytes(_SOUND[damage.form])
    damage.harm(path)
    return path


_SOUND: dict[Form, bytes] = {}


# ---------------------------------------------------------------- bytes


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def _cut(at: float) -> Callable[[Path], None]:
    """Keep so many bytes, that part of them, or (below zero) all but so many."""
    return _bytes(lambda body: body[: int(len(body) * at) if 0 < at < 1 else int(at)])


def _patch(body: bytes, at: int, value: bytes) -> bytes:
    return body[:at] + value + body[at + len(value) :]


def _first(signature: bytes, offset: int, value: bytes, *, kind: int | None = None) -> Callable[[Path], None]:
    """Overwrite bytes at an offset from the first block of a signature (and kind, the byte after it)."""
    wanted = signature if kind is None else signature + bytes([kind])

    def change(body: bytes) -> bytes:
        assert wanted in body
        return _patch(body, body.index(wanted) + offset, value)

    return _bytes(change)


def _every(signature: bytes, value: bytes) -> Callable[[Path], None]:
    return _bytes(lambda body: body.replace(signature, value))


# ---------------------------------------------------------------- chunks


def _chunk(path: Path, name: str, number: int = 1) -> tuple[h5d.StoreInfo, bytes]:
    with h5py.File(path) as file:
        found = file[name].id.get_chunk_info(number)
    return found, path.read_bytes()


def _flipped(name: str, at: int = 5) -> Callable[[Path], None]:
    """Flip a bit in the middle of a stored chunk."""

    def harm(path: Path) -> None:
        found, body = _chunk(path, name)
        where = found.byte_offset + min(at, found.size - 1)
        path.write_bytes(_patch(body, where, bytes([body[where] ^ 0x10])))

    return harm


def _replaced(name: str, body: Callable[[int], bytes]) -> Callable[[Path], None]:
    """Put other bytes in the place of a chunk, given its decoded size."""

    def harm(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            dataset = file[name]
            at = dataset.id.get_chunk_info(1).chunk_offset
            n_bytes = int(np.prod(dataset.chunks)) * dataset.dtype.itemsize
            dataset.id.write_direct_chunk(at, body(n_bytes))

    return harm


def _contiguous(name: str, offset: int, value: bytes) -> Callable[[Path], None]:
    """Overwrite bytes of a contiguous dataset."""

    def harm(path: Path) -> None:
        with h5py.File(path) as file:
            at = file[name].id.get_offset()
        path.write_bytes(_patch(path.read_bytes(), at + offset, value))

    return harm


# ---------------------------------------------------------------- what the file says


def _edit(change: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return harm


def _dataset(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Write other values in the place of a dataset."""

    def edit(file: h5py.File) -> None:
        attributes, values = dict(file[name].attrs), change(file[name][()])
        del file[name]
        file.create_dataset(name, data=values).attrs.update(attributes)

    return _edit(edit)


def _set(values: np.ndarray, at: int, value: Any) -> np.ndarray:
    values = values.copy()
    values[at] = value
    return values


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((37, 11), "f8")
    layout[:] = h5py.VirtualSource("other.h5ad", "X", shape=(37, 11))
    file.create_virtual_dataset("layers/elsewhere", layout).attrs.update(ARRAY)


def _external(file: h5py.File) -> None:
    made = file.create_dataset("layers/elsewhere", (37, 11), "f8", external=[("/etc/passwd", 0, 37 * 11 * 8)])
    made.attrs.update(ARRAY)


def _filtered(file: h5py.File) -> None:
    """A chunk through a filter whose number is nobody's; HDF5 lets it be optional, and so be left out here."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((37, 11))
    plist.set_filter(511, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((37, 11))
    made = h5py.Dataset(h5py.h5d.create(file["layers"].id, b"odd", h5py.h5t.NATIVE_DOUBLE, space, dcpl=plist))
    made.id.write_direct_chunk((0, 0), bytes(37 * 11 * 8))
    made.attrs.update(ARRAY)


def _column_elsewhere(file: h5py.File) -> None:
    file["obs/elsewhere"] = h5py.ExternalLink("other.h5ad", "/obs/score")
    add_column(file, "elsewhere")


def _loop(file: h5py.File) -> None:
    file["uns/nested/again"] = file["uns/nested"]


def _soft_loop(file: h5py.File) -> None:
    file["layers/a"], file["layers/b"] = h5py.SoftLink("/layers/b"), h5py.SoftLink("/layers/a")


def _two_tables(file: h5py.File) -> None:
    del file["obs"].attrs["_index"]


def _long_column(file: h5py.File) -> None:
    add_column(file, "endless", file["obs"].create_dataset("endless", (2**40,), "f8", chunks=(1000,)))


def _large_matrix(file: h5py.File) -> None:
    made = file.create_dataset("layers/endless", (2**30, 2**30), "f8", chunks=(1000, 1000))
    made.attrs.update(ARRAY)


def _nothing_of_anndata(file: h5py.File) -> None:
    file.clear()
    for name in list(file.attrs):
        del file.attrs[name]
    file["matrix"] = [1, 2, 3]


DAMAGES: dict[str, Damage] = {
    # no HDF5 at all
    "no bytes": Damage(_bytes(lambda _: b"")),
    "text": Damage(_bytes(lambda _: b"cell,gene\na,b\n" * 500)),
    "gzip of a file": Damage(_bytes(gzip.compress)),
    "zeros": Damage(_bytes(lambda body: bytes(len(body)))),
    "another signature": Damage(_bytes(lambda body: b"\x89HDG" + body[4:])),
    # cut
    **{f"cut at {at}": Damage(_cut(at)) for at in (4, 8, 20, 60, 96, 600, 0.5, 0.9, -1)},
    **{f"cut at {at}, latest": Damage(_cut(at), form=LATEST) for at in (12, 40, 60, 0.5, 0.9, -1)},
    # the superblock
    "version of the superblock": Damage(_bytes(lambda body: _patch(body, 8, b"\x09"))),
    "checksum of the superblock": Damage(_bytes(lambda body: _patch(body, 44, b"\0\0\0\0")), form=LATEST),
    "size of addresses": Damage(_bytes(lambda body: _patch(body, 13, b"\x05"))),
    # metadata
    "root beyond the file": Damage(_bytes(lambda body: _patch(body, 64, struct.pack("<Q", BEYOND)))),
    "group beyond the file": Damage(_first(b"TREE", 32, struct.pack("<Q", BEYOND), kind=0)),
    "names beyond the file": Damage(_first(b"HEAP", 24, struct.pack("<Q", BEYOND))),
    "members overwritten": Damage(_first(b"SNOD", 0, b"DONS")),
    "a group that is its own child": Damage(
        _bytes(lambda b: _patch(b, b.index(b"TREE\0") + 32, struct.pack("<Q", b.index(b"TREE\0"))))
    ),
    "header overwritten, latest": Damage(_first(b"OHDR", 0, b"XXXX"), form=LATEST),
    "header flipped, latest": Damage(_first(b"OHDR", 30, b"\xa5\x5a"), form=LATEST),
    # chunks
    "chunks beyond the file": Damage(_every(b"TREE\x01", b"TREF\x01"), _LOST),
    "gzip flipped": Damage(_flipped("X/data"), _LOST, "X/data"),
    "gzip flipped, latest": Damage(_flipped("X/data"), _LOST, "X/data", LATEST),
    "gzip of a column flipped": Damage(_flipped("obs/n_counts"), _LOST, "obs/n_counts"),
    "gzip of indptr flipped": Damage(_flipped("X/indptr"), _LOST, "X/indptr"),
    "lzf overwritten": Damage(
        _replaced("layers/dense", lambda n: b"\xff" * n), _LOST, "layers/dense", Form((Storage("uneven", "lzf"),))
    ),
    "fletcher32 flipped": Damage(
        _flipped("X/data"), _LOST, "X/data", Form((Storage("threes", "fletcher32"),), libver="latest")
    ),
    "fletcher32 gzip flipped": Damage(
        _flipped("layers/dense", 60), _LOST, "layers/dense", Form((Storage("uneven", "fletcher32 gzip"),))
    ),
    "fletcher32 itself flipped": Damage(
        _flipped("X/indices", 999), _LOST, "X/indices", Form((Storage("threes", "fletcher32"),))
    ),
    "a chunk of too few bytes": Damage(_replaced("X/data", lambda n: zlib.compress(bytes(n - 4))), _LOST, "X/data"),
    "a chunk of too many bytes": Damage(_replaced("X/data", lambda n: zlib.compress(bytes(n + 4))), _LOST, "X/data"),
    "a chunk of a gigabyte": Damage(_replaced("X/data", lambda _: _bomb()), _LOST, "X/data"),
    "an empty chunk": Damage(_replaced("X/data", lambda _: b"\0"), _LOST, "X/data"),
    "a filter that nobody has": Damage(_edit(_filtered), _OTHER, "511"),
    # text
    "heap of texts overwritten": Damage(_every(b"GCOL", b"LOCG"), _LOST, form=PLAIN),
    # a reference to text: its length, the address of its heap, its number there
    "text beyond the file": Damage(_contiguous("var/_index", 4, struct.pack("<Q", BEYOND)), _LOST, "var", PLAIN),
    "text that its heap lacks": Damage(_contiguous("var/_index", 12, struct.pack("<I", 9999)), _LOST, "var", PLAIN),
    "text longer than its heap": Damage(_contiguous("var/_index", 0, struct.pack("<I", 10**9)), _LOST, "var", PLAIN),
    # other files
    "a link to another file": Damage(
        _edit(lambda f: f.__setitem__("layers/elsewhere", h5py.ExternalLink("other.h5ad", "/X"))), _OTHER,
        "layers/elsewhere",
    ),
    "a column in another file": Damage(_edit(_column_elsewhere), _OTHER, "obs/elsewhere"),
    "values in another file": Damage(_edit(_external), _OTHER, "layers/elsewhere"),
    "a virtual dataset": Damage(_edit(_virtual), _OTHER, "layers/elsewhere"),
    # links
    "a link to nothing": Damage(
        _edit(lambda f: f.__setitem__("layers/gone", h5py.SoftLink("/nowhere"))), (*_BAD, "NotFoundError"),
        "layers/gone",
    ),
    "a loop of links": Damage(_edit(_soft_loop), (*_BAD, *_OTHER, "NotFoundError"), "layers/"),
    "a group within itself": Damage(_edit(_loop), (*_BAD, *_OTHER), "uns/nested"),
    # what does not fit
    "no AnnData": Damage(_edit(_nothing_of_anndata)),
    "no obs": Damage(_edit(lambda f: f.__delitem__("obs")), names="obs"),
    "no index": Damage(_edit(_two_tables), names="obs"),
    "an index that is not there": Damage(_edit(lambda f: f.__delitem__("var/_index")), (*_BAD, "NotFoundError"), "var"),
    "a column that is not there": Damage(
        _edit(lambda f: f.__delitem__("obs/score")), (*_BAD, "NotFoundError"), "score"
    ),
    "no indptr": Damage(_edit(lambda f: f.__delitem__("X/indptr")), (*_BAD, "NotFoundError"), "X"),
    "a short indptr": Damage(_dataset("X/indptr", lambda v: v[:-3]), names="X"),
    "indptr past the values": Damage(_dataset("X/indptr", lambda v: _set(v, -1, 10**6)), names="X"),
    "indptr falls": Damage(_dataset("X/indptr", lambda v: _set(v, 5, v[-1])), names="X"),
    "indices past the genes": Damage(_dataset("X/indices", lambda v: _set(v, 7, 999)), names="X"),
    "indices below zero": Damage(_dataset("X/indices", lambda v: _set(v, 7, -2)), names="X"),
    "fewer values than indices": Damage(_dataset("X/data", lambda v: v[:-4]), names="X"),
    "a matrix of another shape": Damage(_dataset("layers/dense", lambda v: v[:-1]), names="dense"),
    "a short column": Damage(_dataset("obs/n_counts", lambda v: v[:-1]), names="n_counts"),
    "an endless column": Damage(_edit(_long_column), names="endless"),
    "an endless matrix": Damage(_edit(_large_matrix), names="endless"),
    "codes without a category": Damage(_dataset("obs/cell_type/codes", lambda v: _set(v, 3, 99)), names="cell_type"),
    "a category twice": Damage(
        _edit(lambda f: put(f, "obs/cell_type/categories", np.array(["a", "a", "b", "c"], object))), names="cell_type"
    ),
    "an unknown encoding": Damage(
        _edit(lambda f: f["layers/dense"].attrs.__setitem__("encoding-type", "of-tomorrow")), (*_BAD, *_OTHER),
        "layers/dense",
    ),
    "a shape that is no shape": Damage(_edit(lambda f: f["X"].attrs.__setitem__("shape", "wide")), names="X"),
    "a shape of other cells": Damage(_edit(lambda f: f["X"].attrs.__setitem__("shape", [5, 11])), names="X"),
}  # fmt: skip
"""One file of every damage, by name."""


def _bomb() -> bytes:
    """A gigabyte of zeros in a megabyte."""
    squeeze = zlib.compressobj(9)
    return b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(1 << 10)) + squeeze.flush()
