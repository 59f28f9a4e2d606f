"""Opens stores, and opens them again where a pickled reader is loaded.

A reader's pickle is small and holds no credentials: where the store is, and a
digest of what it was. The process that loads it opens the store, once, when
it is first read from: what only passes it on (a scheduler) needs no access,
and a failure belongs to the task that reads. Must not know what is read.
"""

from __future__ import annotations

import copyreg
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, override

from zarr.abc.store import Store

from lobster_zarr.element import StoreReader
from lobster_zarr.fetch import Fetcher
from lobster_zarr.h5fetch import FileFetcher, read_file
from lobster_zarr.h5legacy import is_legacy, read_legacy
from lobster_zarr.h5store import FileStore
from lobster_zarr.noted import ATTRIBUTE
from lobster_zarr.store import UriStore, display_uri, run
from lobster_zarr.tree import is_ours, read_tree

if TYPE_CHECKING:
    from lobster_zarr.byterange import Network

MAX_REOPENED = 16
"""Stores that a process keeps open for the tasks that it is sent."""


def open_reader(store: Store, uri: str, network: Network) -> StoreReader:
    """Read the metadata of a store: one request where it is consolidated.

    Raises
    ------
    NotFoundError, FormatError, StorageError
        There is no store, it is damaged, or the storage refused.
    """
    if isinstance(store, FileStore):
        return _open_file(store, uri, network)
    tree = run(read_tree(store, uri))
    noted = tree.attributes("").get(ATTRIBUTE)
    stored = noted.get("stored_bytes") if isinstance(noted, Mapping) else None
    fetcher = Fetcher(
        store,
        network=network,
        strict=is_ours(tree),
        stored_bytes=stored if isinstance(stored, dict) else None,
        objects=tree.noted_objects(),
    )
    return StoreReader(fetcher, tree, uri)


def _open_file(store: FileStore, uri: str, network: Network) -> StoreReader:
    tree, image, base = run(read_file(store))
    if is_legacy(tree):
        tree, objects, elements = run(read_legacy(store))
        fetcher = Fetcher(store, network=network, strict=False, objects=objects, elements=elements)
        return StoreReader(fetcher, tree, uri)
    return StoreReader(FileFetcher(store, network=network, image=image, base=base), tree, uri)


def spec_of(store: Store) -> Any:
    """What makes a store again in another process, without credentials; of a UriStore no connection is made for it."""
    return (type(store), store.__getstate__()) if isinstance(store, UriStore) else store


def store_of(spec: Any) -> Store:
    """Return the store of a spec."""
    if isinstance(spec, Store):
        return spec
    kind, state = spec
    store: UriStore = object.__new__(kind)
    store.__setstate__(state)
    return store


_reopened: OrderedDict[tuple[str, Network, str, str], StoreReader] = OrderedDict()
_reopening = threading.Lock()


class _Sent(StoreReader):
    """A reader that came in a pickle: it becomes a StoreReader when it is first used, not on the event loop."""

    is_open: ClassVar = False

    def __init__(self, *sent: Any) -> None:
        self._sent, self.uri = sent, f"{sent[1]}/{sent[4]}".rstrip("/")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of any object, by who would copy or show it
            raise AttributeError(name)
        if sent := self.__dict__.get("_sent"):  # else another thread has opened it
            self.__dict__ = _reopen(*sent).__dict__  # shared by all that were sent
            self.__class__ = StoreReader  # type: ignore[assignment]
        return object.__getattribute__(self, name)

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        sent = self.__dict__.get("_sent")
        return (_Sent, sent) if sent else _reduced(self)


def _reopen(spec: Any, uri: str, network: Network, digest: str, root: str) -> StoreReader:
    """Open the store of a pickled reader, once a process, and of it the part that was read.

    Raises
    ------
    ConflictError
        It is not what it was when it was pickled.
    """
    key = (repr(spec), network, digest, root)
    with _reopening:
        if key not in _reopened or _reopened[key].identity.is_stale:  # under the same metadata, opened anew
            reader = open_reader(store_of(spec), uri, network)
            if reader.identity.digest != digest:
                raise reader.identity.stale()
            _reopened[key] = reader.below(root.rstrip("/")) if root else reader
        _reopened.move_to_end(key)
        while len(_reopened) > MAX_REOPENED:
            _reopened.popitem(last=False)
        return _reopened[key]


def _reduced(reader: StoreReader) -> tuple[Any, ...]:
    store, identity = reader.fetcher.store, reader.identity
    whole = display_uri(identity.uri)
    return _Sent, (spec_of(store), whole, reader.fetcher.network, identity.digest, reader.tree.root)


copyreg.pickle(StoreReader, _reduced)
