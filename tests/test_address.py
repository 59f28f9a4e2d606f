"""An address travels without secrets, and whoever may have them gets them back."""

from __future__ import annotations

import pickle

import pytest

from lobster_zarr.address import Address

KEYS = {"key": "AKIASECRET", "secret": "wJalrSECRET", "token": "tokenSECRET"}


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        ("s3://lab/a.h5ad", KEYS | {"endpoint_url": "https://s3.example.org", "requester_pays": True}),
        ("https://user:SECRET@example.org/a.h5ad?X-Amz-Signature=SECRET", {}),
    ],
)
def test_what_travels_holds_no_secret_and_what_is_borrowed_does(uri, options):
    address = Address.of(uri, options)
    assert "SECRET" not in repr(address) + str(address)
    assert b"SECRET" not in pickle.dumps(address)
    borrowed_uri, borrowed = pickle.loads(pickle.dumps(address)).borrow()  # noqa: S301  made by the test
    assert borrowed_uri == uri
    assert borrowed.items() >= options.items()
    assert Address.of(borrowed_uri, borrowed) == address


def test_where_nobody_lends_the_public_options_remain():
    address = Address.of("s3://lab/a.h5ad", KEYS | {"endpoint_url": "https://s3.example.org"})
    uri, options = Address(address.uri, address.options, "").borrow()
    assert (uri, options["endpoint_url"]) == ("s3://lab/a.h5ad", "https://s3.example.org")
    assert not KEYS.keys() & options.keys()


@pytest.mark.parametrize("uri", ["s3://lab/a.zarr", "s3://lab", "memory://a", "/data/a.zarr"])
def test_a_part_lies_below(uri):
    address = Address.of(uri, KEYS)
    assert address.below("") == address
    assert address.below("mod/rna").uri == f"{uri}/mod/rna"
    assert address.below("mod/rna").borrow()[1] == address.borrow()[1]


def test_a_part_of_a_secret_uri_is_secret_too():
    part = Address.of("https://user:SECRET@example.org/a.zarr?X-Amz-Signature=SECRET").below("mod/rna")
    assert "SECRET" not in repr(part)
    assert part.borrow()[0] == "https://user:SECRET@example.org/a.zarr/mod/rna?X-Amz-Signature=SECRET"


def test_a_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = Address.of("a.h5ad")
    assert (address.uri, address.lent) == (str(tmp_path / "a.h5ad"), "")
    assert address.is_shared
    assert not Address.of("memory://a").is_shared
