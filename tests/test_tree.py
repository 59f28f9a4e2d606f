"""Opening: how many requests the metadata costs, and what is not a store."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from lobster_zarr.errors import FormatError, NotFoundError
from lobster_zarr.layout import MARKER
from lobster_zarr.loop import run
from lobster_zarr.node import Tree
from lobster_zarr.noted import ATTRIBUTE
from lobster_zarr.store import open_store
from lobster_zarr.tree import is_ours, read_tree
from tests.recording import GROUP, RecordingStore, tree_of, write_nodes

ADATA = ad.AnnData(
    np.eye(3, dtype="float32"), uns={"nested": {"deep": {"value": np.arange(3)}}}, obsm={"X_umap": np.ones((3, 2))}
)


def written(zarr_format, *, consolidated):
    store = RecordingStore()
    group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    ad.io.write_elem(group, "/", ADATA)
    if consolidated:
        zarr.consolidate_metadata(store, zarr_format=zarr_format)
    else:
        for key in (".zmetadata",):
            store.lose(key)
        root = zarr.open_group(store, mode="r", use_consolidated=False)
        if zarr_format == 3 and root.metadata.consolidated_metadata is not None:
            write_nodes(store, {"zarr.json": {**GROUP, "attributes": dict(root.attrs)}})
    store.forget()
    return store


def members(store):
    found = {"": zarr.open_group(store, mode="r")}
    return found | dict(found[""].members(max_depth=None))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
def test_every_node_of_a_store_is_in_its_tree(zarr_format, consolidated):
    store = written(zarr_format, consolidated=consolidated)
    tree = tree_of(store)
    expected = members(store)
    assert tree.zarr_format == zarr_format
    assert set(tree.nodes) == set(expected)
    for path, node in expected.items():
        assert tree.attributes(path) == dict(node.attrs)
        assert tree.is_array(path) == isinstance(node, zarr.Array)
        if tree.is_array(path):
            array = tree.array(path)
            assert (array.shape, array.dtype) == (node.shape, node.dtype)
            assert array.grid.chunk == node.chunks
    assert sorted(tree.children("uns")) == ["nested"]
    assert tree.encoding("") == "anndata"


def test_a_consolidated_store_is_one_request():
    store = written(3, consolidated=True)
    tree_of(store)
    assert [(c.method, c.key, c.byte_range) for c in store.calls] == [("get", "zarr.json", None)]


def test_a_consolidated_store_of_version_2_is_two_requests():
    store = written(2, consolidated=True)
    tree_of(store)
    assert store.keys == ["zarr.json", ".zmetadata"]


def test_without_consolidation_every_node_is_asked_for_once():
    store = written(3, consolidated=False)
    tree = tree_of(store)
    gets = [c.key for c in store.calls if c.method == "get" and c.key != "zarr.json"]
    assert sorted(gets) == sorted(f"{p}/zarr.json" for p in tree.nodes if p)
    assert [c.method for c in store.calls].count("list_prefix") == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"node_type": "gro', b"not json"])
@pytest.mark.parametrize("key", ["zarr.json", ".zmetadata", ".zgroup"])
def test_damaged_json_is_an_error_that_names_the_object(damage, key):
    store = RecordingStore()
    write_nodes(store, {key: damage})
    with pytest.raises(FormatError) as failure:
        tree_of(store)
    assert key in str(failure.value)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_damage_deeper_in_a_store_is_an_error_too(zarr_format):
    store = written(zarr_format, consolidated=False)
    key = "obs/zarr.json" if zarr_format == 3 else "obs/.zattrs"
    store.replace(key, store.body(key)[:-3])
    with pytest.raises(FormatError) as failure:
        tree_of(store)
    assert key in str(failure.value)


@pytest.mark.parametrize(
    ("key", "document"),
    [
        ("zarr.json", []), ("zarr.json", "group"), ("zarr.json", 3),
        ("zarr.json", {**GROUP, "consolidated_metadata": {"metadata": None}}),
        (".zmetadata", []), (".zmetadata", {"metadata": 3}),
        ("zarr.json", {**GROUP, "consolidated_metadata": {"kind": "inline"}}),
        ("zarr.json", {**GROUP, "consolidated_metadata": {"metadata": {"X": 3}}}),
        (".zmetadata", {}),
        (".zmetadata", {"metadata": {"X/.zarray": 3}}),
    ],
)  # fmt: skip
def test_json_that_is_no_metadata_is_damage(key, document):
    store = RecordingStore()
    write_nodes(store, {key: document})
    with pytest.raises(FormatError):
        tree_of(store)


@pytest.mark.parametrize(
    "broken",
    [
        {"node_type": "array", "zarr_format": 3},
        {"node_type": "array", "zarr_format": 3, "shape": "x"},
        {"data_type": "no such type"},
        {"codecs": [{"name": "no such codec"}]},
        {"shape": [-1]},
    ],
)
def test_an_array_with_damaged_metadata_is_damage(broken):
    store = written(3, consolidated=True)
    root = json.loads(store.body("zarr.json"))
    nodes = root["consolidated_metadata"]["metadata"]
    nodes["X"] = broken if "node_type" in broken else nodes["X"] | broken
    write_nodes(store, {"zarr.json": root})
    with pytest.raises(FormatError) as failure:
        tree_of(store).array("X")
    assert type(failure.value) is FormatError


def test_an_array_is_no_store():
    store = RecordingStore()
    zarr.create_array(store, shape=(3,), dtype="i4")
    with pytest.raises(FormatError):
        tree_of(store)


def test_nothing_is_no_store():
    store = RecordingStore()
    with pytest.raises(NotFoundError) as failure:
        run(read_tree(store, "s3://user:secret@bucket/atlas.zarr?X-Amz-Signature=abc"))
    assert "bucket/atlas.zarr" in str(failure.value)
    assert "secret" not in str(failure.value)
    assert "Signature" not in str(failure.value)


def test_an_unfinished_conversion_is_no_store():
    store = RecordingStore()
    write_nodes(store, {MARKER: {"started": "now"}, "X/zarr.json": GROUP})
    with pytest.raises(NotFoundError) as failure:
        tree_of(store)
    assert "unfinished" in str(failure.value)


def test_a_store_that_is_being_replaced_is_still_a_store():
    store = written(3, consolidated=True)
    write_nodes(store, {MARKER: {}})
    assert "X" in tree_of(store)


def test_any_store_serves(tmp_path):
    ad.io.write_elem(zarr.open_group(tmp_path / "a.zarr", mode="w"), "/", ADATA)
    expected = set(members(LocalStore(tmp_path / "a.zarr")))
    assert set(tree_of(LocalStore(tmp_path / "a.zarr")).nodes) == expected
    assert set(tree_of(open_store(tmp_path / "a.zarr")).nodes) == expected


def test_ours_is_what_says_so_at_its_root():
    assert is_ours(Tree({"": {"attributes": {ATTRIBUTE: {"format_version": 1}}}}))
    assert not is_ours(Tree({"": {"attributes": {"encoding-type": "anndata"}}}))
    assert not is_ours(Tree({"": {}}))
    assert not is_ours(Tree({"": {}, "obs": {"attributes": {ATTRIBUTE: {}}}}))
