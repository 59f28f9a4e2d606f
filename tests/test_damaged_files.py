"""Files that are spoilt: one clear error of this package each, within bounds of memory."""

from __future__ import annotations

import itertools
import resource
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import oracle
import psutil
import pytest
from h5damage import CHUNKED, DAMAGES, LATEST, damaged
from h5files import FORMS, IN_TURN, sample, write

import lobster_zarr as lz
from lobster_zarr import errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What anndata says of odd files.
pytestmark = pytest.mark.filterwarnings("ignore")


def _all_of(path: Path) -> Any:
    return lz.open(path).query(memory_limit="2GB").to_memory()


@pytest.fixture
def two_gigabytes() -> Iterator[None]:
    """So much more address space, and no more: a file that asks for terabytes must not take the machine with it."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (2 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def _reasons(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("name", list(DAMAGES)[IN_TURN])
def test_damage_is_one_clear_error(name: str, tmp_path: Path, two_gigabytes: None) -> None:
    damage = DAMAGES[name]
    path = damaged(tmp_path / "spoilt.h5ad", damage)
    with pytest.raises(errors.LobsterZarrError) as failure:
        _all_of(path)
    assert not [e for e in _reasons(failure.value) if isinstance(e, MemoryError)]
    assert isinstance(failure.value, tuple(getattr(errors, e) for e in damage.errors)), failure.value
    assert damage.names in str(failure.value)
    assert damage.names or "spoilt.h5ad" in str(failure.value)


@pytest.mark.parametrize("name", ["gzip flipped", "fletcher32 flipped", "indices past the genes"])
def test_what_is_sound_of_a_damaged_file_is_read(name: str, tmp_path: Path) -> None:
    sound = ad.read_h5ad(write(sample(), tmp_path / "sound.h5ad", FORMS["plain"]))
    data = lz.open(damaged(tmp_path / "a.h5ad", DAMAGES[name]))
    assert data.query("n_counts > 500").count() == (sound.obs["n_counts"] > 500).sum()
    bare = data.query(X=False, layers=["dense"]).to_memory()
    oracle.assert_equal(bare.layers["dense"], sound.layers["dense"])


def _values_of(path: Path) -> np.ndarray:
    """Where values lie in a file: the bytes of contiguous datasets and of chunks."""
    found: list[np.ndarray] = []

    def visit(_: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset):
            return
        if node.id.get_offset() is not None:
            found.append(np.arange(node.nbytes) + node.id.get_offset())
        elif node.chunks is not None and node.shape:
            infos = (node.id.get_chunk_info(i) for i in range(node.id.get_num_chunks()))
            found.extend(np.arange(i.size) + i.byte_offset for i in infos)

    with h5py.File(path) as file:
        file.visititems(visit)
    return np.concatenate(found)


@pytest.mark.parametrize(("form", "seed"), list(itertools.product(["plain", "chunked", "latest"], range(2))))
def test_flipped_bytes_are_an_error_or_a_result_and_nothing_else(
    form: str, seed: int, tmp_path: Path, two_gigabytes: None
) -> None:
    """No other exception, and no endless work.

    The old format has no checksums of its metadata, and libhdf5 crashes on some that are damaged: there only
    values are.
    """
    path = write(sample(), tmp_path / "a.h5ad", {"plain": FORMS["plain"], "chunked": CHUNKED, "latest": LATEST}[form])
    sound, rng = path.read_bytes(), np.random.default_rng(seed)
    places = np.arange(len(sound)) if form == "latest" else _values_of(path)
    for number in range(4):
        body = np.frombuffer(sound, np.uint8).copy()
        at = rng.choice(places, 40 if number % 2 else 4)
        body[at] = rng.integers(0, 256, len(at))
        path.write_bytes(body.tobytes())
        try:
            result = _all_of(path)
        except errors.LobsterZarrError as error:
            assert str(error)  # noqa: PT017 - that there is a result instead is as good
        else:
            assert result.n_obs >= 0
