"""Shuffled batches of a selection, with labels, for training.

Reads what :mod:`lobster_zarr.epoch` says of the rows, and makes of it what a
training loop takes. Torch is imported where it is asked for, and nowhere else.
"""

from __future__ import annotations

import secrets
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd

from lobster_zarr.epoch import Buffer, Epochs
from lobster_zarr.errors import InvalidArgumentError, NotFoundError, UnsupportedError, did_you_mean
from lobster_zarr.fetch import together
from lobster_zarr.projection import Axis
from lobster_zarr.report import parse_size, positive
from lobster_zarr.scratch import ahead

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lobster_zarr.reading import Reading

RUN_BYTES = 2 << 20
"""Decoded bytes of a run: about thirty chunks, so that the two that it shares with its neighbours cost little."""


ROW_BYTES = 24
"""Of a row beside its values: its offset, its position and its place."""


class Batch(NamedTuple):
    """Rows of a selection.

    Torch tensors throughout where they were asked for.

    Attributes
    ----------
    X : csr_matrix, or ndarray where it is stored dense or was asked for so, shape (n, n_vars)
        Values.
    labels : dict of str to ndarray, shape (n,)
        By obs column: codes (int64) where ``classes`` has the column, else its values.
    rows : ndarray of int64, shape (n,)
        Positions of the rows in the selection: those of its :meth:`~lobster_zarr.Selection.to_pandas`.
    """

    X: Any
    labels: dict[str, Any]
    rows: Any


@dataclass(frozen=True)
class Options:
    """How batches are made: see :meth:`lobster_zarr.Selection.loader`."""

    batch_size: int
    shuffle: bool
    seed: int | None
    labels: Sequence[str]
    path: str
    dense: bool
    as_torch: bool
    drop_last: bool
    buffer_bytes: int | str
    run_rows: int | None
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        positive(self.batch_size, "batch_size")
        positive(self.world_size, "world_size")
        parse_size(self.buffer_bytes, "buffer_bytes")
        if self.run_rows is not None:
            positive(self.run_rows, "run_rows")
        if isinstance(self.labels, str):
            raise InvalidArgumentError(f"labels={self.labels!r} is a single text; expected a list: [{self.labels!r}].")
        if self.seed is not None:
            _check_count(self.seed, "seed")
        if _check_count(self.rank, "rank") >= self.world_size:
            raise InvalidArgumentError(f"rank is {self.rank}; expected one below world_size={self.world_size}.")
        if self.world_size > 1 and self.shuffle and self.seed is None:
            raise InvalidArgumentError("world_size is above 1 without a seed; give every rank the same one.")


def _check_count(number: int, name: str) -> int:
    if isinstance(number, bool) or not isinstance(cast("object", number), int) or number < 0:
        raise InvalidArgumentError(f"{name} is {number!r}; expected a whole number, not below zero.")
    return number


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What all epochs need.

    Parameters
    ----------
    stored
        Positions in storage of the rows, in the order in which `epochs` counts them.
    order
        Their positions in the selection; None where they are the same.
    columns
        Genes.
    """

    stored: np.ndarray
    order: np.ndarray | None
    columns: Axis
    epochs: Epochs
    labels: dict[str, np.ndarray]
    classes: dict[str, pd.Index]


class Loader:
    """Batches of a selection, a new order each epoch. Made by :meth:`lobster_zarr.Selection.loader`.

    Iterating it gives one epoch: every row once, in :class:`Batch` es. Its pickle is small
    and holds no credentials. In a worker of a torch ``DataLoader`` it gives that worker's share.

    Parameters
    ----------
    reading
        Of the selection.
    options
        How batches are made.
    own_seed
        What stands for a seed where none was given; None to draw one.
    epoch
        The number of the next epoch.
    """

    def __init__(self, reading: Reading, options: Options, own_seed: int | None = None, epoch: int = 0) -> None:
        check_rowwise(reading, options.path)
        reading = reading.only(options.path)
        known = reading.reader.obs.columns
        for name in options.labels:
            if name not in known:
                raise NotFoundError(f"obs has no {name!r}.{did_you_mean(name, known)} It has: {list(known)}")
        if options.as_torch:
            _join_torch()
        self.options = options
        self._reading, self._epoch, self._prepared = reading, epoch, None
        self._own_seed = secrets.randbits(63) if own_seed is None else own_seed

    _prepared: _Prepared | None

    def __reduce__(self) -> tuple[Any, ...]:
        return Loader, (self._reading, self.options, self._own_seed, self._epoch)

    def __repr__(self) -> str:
        return f"Loader(batch_size={self.options.batch_size}, path={self.options.path!r}) of {self._reading.uri}"

    @property
    def classes(self) -> dict[str, pd.Index]:
        """The categories of each label column that is encoded, as they are stored; of text its values, sorted.

        Reads the columns, once.
        """
        return self._prepare().classes

    def __len__(self) -> int:
        """The number of batches of an epoch, of this rank. Resolves the selection, once."""
        return self._prepare().epochs.n_batches

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next; otherwise they are counted from 0, by each process on its own."""
        self._epoch = _check_count(epoch, "epoch")

    def __iter__(self) -> Iterator[Batch]:
        """Give one epoch.

        Yields
        ------
        Batch
            Of a worker of a torch ``DataLoader`` only its share.
        """
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self._batches(epoch)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        known, worker, n_workers, draw = self._prepare(), 0, 1, 0
        torch_data: Any = sys.modules.get("torch.utils.data")
        info = torch_data.get_worker_info() if torch_data else None
        if info is not None:
            worker, n_workers, draw = info.id, info.num_workers, info.seed - info.id  # drawn anew for all, each epoch
        seed = self.options.seed
        entropy = (self._own_seed, epoch, draw) if seed is None else (seed, epoch)
        buffers = known.epochs.buffers(entropy, worker, n_workers)
        for buffer, matrix in ahead((b, self._read(known, b)) for b in buffers):
            rows = buffer.rows if known.order is None else known.order[buffer.rows]
            for places in buffer.batches:
                yield self._batch(known, matrix[places], rows[places])

    def _read(self, known: _Prepared, buffer: Buffer) -> Any:
        part = self._reading.part(Axis.of(known.stored[buffer.rows]), known.columns)
        matrix = part.run(part.matrix(self.options.path))
        return matrix.tocsr() if hasattr(matrix, "tocsr") else matrix

    def _batch(self, known: _Prepared, matrix: Any, rows: np.ndarray) -> Batch:
        labels = {
            name: values[rows].astype(np.int64) if name in known.classes else values[rows]
            for name, values in known.labels.items()
        }
        matrix = matrix.toarray() if self.options.dense and hasattr(matrix, "toarray") else matrix
        if not self.options.as_torch:
            return Batch(matrix, labels, rows)
        from torch import from_numpy

        tensors = {name: from_numpy(values) for name, values in labels.items()}
        return Batch(as_tensor(matrix), tensors, from_numpy(rows))

    def _prepare(self) -> _Prepared:
        if self._prepared is None:
            self._prepared = self._reading.run(self._resolve())
        return self._prepared

    async def _resolve(self) -> _Prepared:
        reading, options = self._reading, self.options
        obs = reading.reader.obs
        rows, columns = await reading.settled_axes()
        read: list[Any] = await together(
            reading.weights(options.path), *(obs.column(name, rows.runs) for name in options.labels)
        )
        weights, stored, order = read[0].row_bytes + ROW_BYTES, rows.stored(obs.n_rows), None
        if options.shuffle and np.any(np.diff(stored) < 0):
            order = np.argsort(stored, kind="stable")
            weights, stored = weights[order], stored[order]
        epochs = Epochs(
            weights,
            options.batch_size,
            options.run_rows or max(int(RUN_BYTES / weights.mean()) if len(weights) else 1, 1),
            parse_size(options.buffer_bytes, "buffer_bytes"),
            options.shuffle,
            options.drop_last,
            options.rank,
            options.world_size,
        )
        encoded = {n: encode(rows.arrange(v)) for n, v in zip(options.labels, read[1:], strict=True)}
        classes = {name: categories for name, (_, categories) in encoded.items() if categories is not None}
        return _Prepared(stored, order, columns, epochs, {n: values for n, (values, _) in encoded.items()}, classes)


def check_rowwise(reading: Reading, path: str) -> None:
    """Refuse a matrix that the selection does not bring, or that cannot be cut by rows. No request.

    Raises
    ------
    NotFoundError, UnsupportedError
        Which of the two.
    """
    part = reading.member(path, Axis(None, None), Axis(None, None))
    if part.columns is part.rows:
        msg = f"{path!r} has cells along both axes: blocks of rows would lose what lies between them; use to_memory()."
        raise UnsupportedError(msg)


def encode(column: Any) -> tuple[np.ndarray, pd.Index | None]:
    """Make numbers of an obs column.

    Returns
    -------
    ndarray
        Codes of categories and of text, -1 where missing; other values as they are, as
        floats with NaN where a nullable column misses some.
    Index or None
        What the codes count.
    """
    if isinstance(column, pd.Categorical):
        return column.codes, column.categories
    if column.dtype.kind in "OTU":
        return encode(pd.Categorical(np.asarray(column, object)))
    if isinstance(column, np.ndarray):
        return column, None
    missing = column.isna().any()
    return column.to_numpy("float64", na_value=np.nan) if missing else column.to_numpy(column.dtype.numpy_dtype), None


def as_tensor(matrix: Any) -> Any:
    """Return a torch tensor of an ndarray, or of a CSR matrix a sparse CSR tensor; values are not copied."""
    import torch

    if isinstance(matrix, np.ndarray):
        return torch.from_numpy(matrix)
    matrix.sum_duplicates()  # torch expects ascending positions
    parts = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    return torch.sparse_csr_tensor(*parts, size=matrix.shape, check_invariants=False)


def _join_torch() -> None:
    """Let torch's ``DataLoader`` know a :class:`Loader` for what it is: an iterable dataset."""
    try:
        import torch
        from torch.utils.data import IterableDataset
    except ImportError as error:
        raise UnsupportedError("as_torch=True needs torch, which is not installed: pip install torch.") from error
    IterableDataset.register(Loader)
    with warnings.catch_warnings():  # torch says once a process that sparse CSR is in beta state, and not checked
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.zeros(1, dtype=torch.int32), torch.empty(0, dtype=torch.int32), torch.empty(0))
