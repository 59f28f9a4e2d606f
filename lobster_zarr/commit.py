"""Writes one store so that it exists wholly or not at all.

Objects are uploaded in the background as they are produced; metadata waits
and goes up in bulk; the root ``zarr.json`` with consolidated metadata is the
last object, the commit point. Must not know what the arrays mean.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from base64 import b64encode
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from zarr.core.buffer import default_buffer_prototype

from lobster_zarr.errors import ConflictError, StorageError
from lobster_zarr.layout import MARKER, NOTED_OBJECT, NOTED_OBJECTS
from lobster_zarr.loop import run, submit
from lobster_zarr.noted import ATTRIBUTE, OBJECT
from lobster_zarr.store import display_uri, is_local, local_path, open_store
from lobster_zarr.wholefile import remove_staged

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from concurrent.futures import Future
    from types import TracebackType

    from zarr.abc.store import Store

    from lobster_zarr.node import ArrayNode

UPLOADS = 32
IN_FLIGHT_BYTES = 96 << 20
ROOT = re.compile(r"(mod/[^/]+/)?(zarr\.json|\.zgroup|\.zmetadata|\.zattrs)")
"""What makes a store, or a modality in it, open."""
STORE_ENCODINGS = ("anndata", "MuData", "raw")


@dataclass
class _Window:
    """Bounds the bytes that wait for the network."""

    limit_bytes: int
    used_bytes: int = 0
    condition: threading.Condition = field(default_factory=threading.Condition)

    def acquire(self, n_bytes: int) -> None:
        with self.condition:
            self.condition.wait_for(lambda: self.used_bytes == 0 or self.used_bytes + n_bytes <= self.limit_bytes)
            self.used_bytes += n_bytes

    def release(self, n_bytes: int) -> None:
        with self.condition:
            self.used_bytes -= n_bytes
            self.condition.notify_all()


class Commit:
    """A store under construction; a context manager.

    Leaving the block without :meth:`finish` (an error, Ctrl-C) deletes what was
    written. A killed process leaves a marker object and no root metadata:
    nothing that opens, and the next :class:`Commit` there replaces it.

    Parameters
    ----------
    uri
        Destination.
    storage_options
        As for :func:`lobster_zarr.open`.
    overwrite
        Replace a store that is there.

    Raises
    ------
    ConflictError
        The destination holds a store and `overwrite` is false, or holds
        something that is not an AnnData or MuData store.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None, *, overwrite: bool = False) -> None:
        self.uri = uri
        self.store: Store = open_store(uri, storage_options, read_only=False)
        self.overwrite = overwrite
        self.replaced = ""
        self.attributes: dict[str, Any] = {}  # further ones, of the root group
        self.n_objects = self.stored_bytes = 0
        self._room_bytes = NOTED_OBJECTS
        self._nodes: dict[str, dict[str, Any]] = {}
        self._stores: list[str] = []
        self._keys: list[str] = []
        self._scratch: set[str] = set()
        self._window = _Window(IN_FLIGHT_BYTES)
        self._gate = asyncio.Semaphore(UPLOADS)
        self._under_way: set[asyncio.Task[Any] | None] = set()
        self._closed = self._finished = False
        self._errors: list[BaseException] = []

    def __enter__(self) -> Self:
        stale = run(self._survey())
        try:
            self._put_alone(MARKER, json.dumps({"writer": "lobster_zarr"}).encode())
            # The root goes first: from here on the old store does not open, and its rest goes in any case.
            self._keys = stale
            roots = [k for k in stale if ROOT.fullmatch(k)]
            run(self._delete(roots))
            run(self._delete(k for k in stale if k not in roots and k != MARKER))
            self._keys = []
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._finished:
            return
        try:
            run(self._settle())
            run(self._delete([*self._keys, *self._scratch, MARKER]))
        except StorageError as failure:
            if error is None:
                raise
            error.add_note(f"What was written to {display_uri(self.uri)} could not be removed: {failure}")

    async def _survey(self) -> list[str]:
        """Look at what the destination holds; return the keys to be replaced."""
        names = [name async for name in self.store.list_dir("")]
        top = {name.rstrip("/") for name in names}
        if not top or not [key async for key in self.store.list_prefix("")]:
            return []  # nothing, or empty folders that an interrupted conversion left on a disk
        where = display_uri(self.uri)
        rooted = top & {"zarr.json", ".zgroup"}
        encoding = await self._encoding("zarr.json" if "zarr.json" in top else ".zattrs") if rooted else ""
        if encoding in STORE_ENCODINGS:
            # Whole, also beside a marker: the marker comes before the old root goes and goes after the new one.
            if not self.overwrite:
                msg = f"{where} already holds a store; pass overwrite=True (--overwrite) to replace it."
                raise ConflictError(msg)
            self.replaced = "a store"
        elif MARKER in top:
            self.replaced = "an unfinished conversion"
            if is_local(self.uri):
                remove_staged(local_path(self.uri))
        elif rooted:
            msg = (
                f"{where} holds a Zarr hierarchy that is not an AnnData or MuData store "
                f"(encoding-type {encoding!r}); choose another destination or delete it yourself."
            )
            raise ConflictError(msg)
        else:
            some = ", ".join(sorted(top)[:3])
            msg = (
                f"{where} is not empty and holds no store (found {some}, …); "
                "choose an empty destination: nothing of yours is deleted."
            )
            raise ConflictError(msg)
        return [key async for key in self.store.list_prefix("")]

    async def _encoding(self, key: str) -> str:
        buffer = await self.store.get(key, default_buffer_prototype())
        if buffer is None:
            return ""
        try:
            document = json.loads(buffer.to_bytes())
            return str(document.get("attributes", document).get("encoding-type", ""))
        except (ValueError, AttributeError):  # not JSON, or not an object: somebody else's
            return ""

    def group(self, path: str, attributes: Mapping[str, Any]) -> None:
        """Add a group to the metadata."""
        self._nodes[path] = {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}

    def array(self, node: ArrayNode) -> None:
        """Add an array to the metadata."""
        self._nodes[node.path] = node.to_json()

    def note(self, path: str, entries: Mapping[str, Any]) -> None:
        """Add to the note of an array, in its metadata."""
        if entries:
            self._nodes[path].setdefault("attributes", {}).setdefault(ATTRIBUTE, {}).update(entries)

    def note_object(self, path: str, payload: bytes) -> None:
        """Note the only object of an array, where it is small and there is room."""
        if len(payload) <= min(NOTED_OBJECT, self._room_bytes):
            self._room_bytes -= len(payload)
            self.note(path, {OBJECT: b64encode(payload).decode()})

    def put(self, key: str, payload: bytes) -> None:
        """Upload an object in the background; waits while too many bytes are under way.

        Raises
        ------
        StorageError
            An earlier upload failed.
        """
        self._check()
        self._window.acquire(len(payload))
        self._note(key, payload)
        submit(self._upload(key, payload)).add_done_callback(lambda done: self._done(done, len(payload)))

    def _note(self, key: str, payload: bytes) -> None:
        self._keys.append(key)
        self.n_objects += 1
        self.stored_bytes += len(payload)

    def expect(self, keys: Iterable[str]) -> None:
        """Take charge of objects of the store that other processes write: unfinished, they go with the rest."""
        self._keys += keys

    def expect_scratch(self, keys: Iterable[str]) -> None:
        """Take charge of objects, whoever writes them, that are needed only until the store is finished."""
        self._scratch.update(keys)

    def put_scratch(self, key: str, payload: bytes) -> None:
        """Upload such an object, and wait for it."""
        self.expect_scratch([key])
        self._put_alone(key, payload)

    def drop_scratch(self, keys: Iterable[str]) -> None:
        """Delete such objects before."""
        gone = set(keys)
        run(self._delete(gone))
        self._scratch -= gone

    def adopt(self, n_bytes: int) -> None:
        """Count an object of the store that another process has written."""
        self.n_objects += 1
        self.stored_bytes += n_bytes

    async def _upload(self, key: str, payload: bytes) -> None:
        task = asyncio.current_task()
        self._under_way.add(task)
        try:
            async with self._gate:
                if not self._closed:
                    await self.store.set(key, default_buffer_prototype().buffer.from_bytes(payload))
        finally:
            self._under_way.discard(task)

    def _put_alone(self, key: str, payload: bytes) -> None:
        # Not `run`, which an interrupt cancels: a cancelled request may still arrive, after its deletion.
        submit(self._upload(key, payload)).result()

    async def _settle(self) -> None:
        """Begin no upload any more, and wait for those under way. All that were submitted have begun by now."""
        self._closed = True
        while self._under_way:
            await asyncio.wait([task for task in self._under_way if task])

    def _done(self, future: Future[None], n_bytes: int) -> None:
        self._window.release(n_bytes)
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._errors.append(error)

    def _check(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _flush(self) -> None:
        self._window.acquire(self._window.limit_bytes)
        self._window.release(self._window.limit_bytes)
        self._check()

    def below(self, path: str) -> CommitPart:
        """Return a group of the store that is to be a store of its own too."""
        return CommitPart(self, path)

    def store_below(self, path: str, attributes: Mapping[str, Any]) -> None:
        """Add a group whose own metadata will tell all that is below it."""
        self.group(path, attributes)
        self._stores.append(path)

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Upload the metadata, the root last, and take the marker away.

        Parameters
        ----------
        attributes
            Of the root group.
        """
        for path, document in self._nodes.items():
            if path not in self._stores:
                self.put(f"{path}/zarr.json", _dump(document))
        self._flush()
        for path in self._stores:  # like the root, they come when all that they tell of is there
            below = {"consolidated_metadata": _consolidated(self._nodes, f"{path}/")}
            self.put(f"{path}/zarr.json", _dump(self._nodes[path] | below))
        self._flush()
        self.drop_scratch(self._scratch)
        root = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": self.attributes | dict(attributes),
            "consolidated_metadata": _consolidated(self._nodes),
        }
        payload = _dump(root)
        self._note("zarr.json", payload)
        self._put_alone("zarr.json", payload)
        self._finished = True
        run(self.store.delete(MARKER))

    async def _delete(self, keys: Iterable[str]) -> None:
        gate = asyncio.Semaphore(UPLOADS)

        async def one(key: str) -> None:
            async with gate:
                await self.store.delete(key)

        failures = await asyncio.gather(*(one(key) for key in keys), return_exceptions=True)
        for failure in filter(None, failures):
            raise failure


class CommitPart:
    """A part of a store under construction that can be opened as a store of its own.

    Takes what a :class:`Commit` takes, with paths and keys from the part's own
    root. It is there when the whole is.

    Parameters
    ----------
    whole
        The store.
    path
        Of the part's group.
    """

    def __init__(self, whole: Commit, path: str) -> None:
        self.whole, self.path = whole, path

    def group(self, path: str, attributes: Mapping[str, Any]) -> None:
        """As :meth:`Commit.group`."""
        self.whole.group(f"{self.path}/{path}", attributes)

    def array(self, node: ArrayNode) -> None:
        """As :meth:`Commit.array`."""
        self.whole.array(replace(node, path=f"{self.path}/{node.path}"))

    def note(self, path: str, entries: Mapping[str, Any]) -> None:
        """As :meth:`Commit.note`."""
        self.whole.note(f"{self.path}/{path}", entries)

    def note_object(self, path: str, payload: bytes) -> None:
        """As :meth:`Commit.note_object`: there is one room for the whole store."""
        self.whole.note_object(f"{self.path}/{path}", payload)

    def put(self, key: str, payload: bytes) -> None:
        """As :meth:`Commit.put`."""
        self.whole.put(f"{self.path}/{key}", payload)

    def expect(self, keys: Iterable[str]) -> None:
        """As :meth:`Commit.expect`."""
        self.whole.expect(self._full(keys))

    def expect_scratch(self, keys: Iterable[str]) -> None:
        """As :meth:`Commit.expect_scratch`."""
        self.whole.expect_scratch(self._full(keys))

    def put_scratch(self, key: str, payload: bytes) -> None:
        """As :meth:`Commit.put_scratch`."""
        self.whole.put_scratch(f"{self.path}/{key}", payload)

    def drop_scratch(self, keys: Iterable[str]) -> None:
        """As :meth:`Commit.drop_scratch`."""
        self.whole.drop_scratch(self._full(keys))

    def adopt(self, n_bytes: int) -> None:
        """As :meth:`Commit.adopt`."""
        self.whole.adopt(n_bytes)

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Add the part's root group; it goes up with the metadata of the whole."""
        self.whole.store_below(self.path, attributes)

    def _full(self, keys: Iterable[str]) -> list[str]:
        return [f"{self.path}/{key}" for key in keys]


type Target = Commit | CommitPart
"""What writers write into."""


def _consolidated(nodes: Mapping[str, Mapping[str, Any]], prefix: str = "") -> dict[str, Any]:
    below = {path.removeprefix(prefix): node for path, node in nodes.items() if path.startswith(prefix)}
    return {"kind": "inline", "must_understand": False, "metadata": below}


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> Any:
    return value.tolist()
