"""The shape of the error tree, its built-in bases, and the names that errors offer."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from lobster_zarr import errors
from lobster_zarr.errors import LobsterZarrError, did_you_mean, near

TREE = {
    "LobsterZarrError": ("Exception",),
    "NotFoundError": ("LobsterZarrError", "KeyError"),
    "InvalidSelectionError": ("LobsterZarrError", "IndexError"),
    "InvalidPredicateError": ("LobsterZarrError", "ValueError"),
    "InvalidArgumentError": ("LobsterZarrError", "ValueError"),
    "FormatError": ("LobsterZarrError", "ValueError"),
    "ChunkDecodeError": ("LobsterZarrError", "ValueError"),
    "VerificationError": ("LobsterZarrError", "ValueError"),
    "UnsupportedError": ("LobsterZarrError", "NotImplementedError"),
    "ConflictError": ("LobsterZarrError", "FileExistsError"),
    "BudgetError": ("LobsterZarrError", "ValueError"),
    "StorageError": ("LobsterZarrError", "OSError"),
    "AccessDeniedError": ("StorageError", "PermissionError"),
    "CredentialsError": ("StorageError",),
    "BucketNotFoundError": ("StorageError", "FileNotFoundError"),
    "NetworkError": ("StorageError", "ConnectionError"),
}


def classes():
    return {n: c for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, Exception)}


def test_the_shape_of_the_tree_is_a_contract():
    assert {name: tuple(b.__name__ for b in cls.__bases__) for name, cls in classes().items()} == TREE


def test_the_docstring_draws_every_class_of_the_tree():
    assert errors.__doc__ is not None
    assert [name for name in TREE if name not in errors.__doc__] == []


@pytest.mark.parametrize("name", TREE)
def test_every_error_says_its_message_as_it_was_written(name):
    message = "store 's3://b/a' has no 'X'; expected one"
    error = classes()[name](message)
    assert str(error) == message  # KeyError's own would put it in quotes
    assert isinstance(error, LobsterZarrError)
    assert str(classes()[name]()) == ""


@pytest.mark.parametrize("name", TREE)
def test_every_error_survives_the_way_back_from_a_worker_process(name):
    error = classes()[name]("what failed")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(again) is type(error)
    assert str(again) == "what failed"


def test_an_uncaught_not_found_error_is_readable_in_a_traceback():
    program = "from lobster_zarr.errors import NotFoundError\nraise NotFoundError(\"no column 'x'\")"
    failed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert failed.stderr.endswith("NotFoundError: no column 'x'\n")


@pytest.mark.parametrize(
    ("asked", "known", "found"),
    [
        ("cel_type", ["cell_type", "donor"], ["cell_type"]),
        ("CELL_TYPE", ["cell_type", "donor"], ["cell_type"]),
        ("Cd3d", ["CD3E", "CD3D"], ["CD3D", "CD3E"]),
        ("xyz", ["cell_type", "donor"], []),
        ("a", [], []),
        ("", ["a"], []),
    ],
)
def test_near_names_come_best_first_in_their_own_case(asked, known, found):
    assert near(asked, known) == found


def test_near_offers_no_more_than_the_limit():
    assert len(near("gene", [f"gene{i}" for i in range(9)])) == 3
    assert len(near("gene", [f"gene{i}" for i in range(9)], limit=1)) == 1


def test_did_you_mean_is_a_sentence_or_nothing():
    assert did_you_mean("donr", ["donor", "batch"]) == " Did you mean 'donor'?"
    assert did_you_mean("n_count", ["n_counts", "n_count2"]).count(" or ") == 1
    assert did_you_mean("zzz", ["donor"]) == ""
