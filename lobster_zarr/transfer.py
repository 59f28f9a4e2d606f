"""Moves whole files to and from S3: in parts, several at once, checked against S3's sums at the end.

An upload is there wholly or not at all, and leaves no unfinished parts; a
download appears under its name only when it is checked. Knows boto3's
transfers. Must not know what the files hold.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobster_zarr.checksum import NOTED_SHA256, came_in_parts, difference, is_summed, sha256, told
from lobster_zarr.errors import ConflictError, InvalidArgumentError, NetworkError, NotFoundError, VerificationError
from lobster_zarr.location import Access, Location
from lobster_zarr.place import place
from lobster_zarr.refusal import DELETE, READ, WRITE, refused_by_system
from lobster_zarr.report import Progress, positive
from lobster_zarr.s3client import missing, payer, s3_client
from lobster_zarr.wholefile import make_folder, whole_file

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    type Callback = Callable[[int, int], None]


@dataclass(frozen=True)
class Parts:
    """How a file is cut for its way.

    Parameters
    ----------
    threshold_bytes
        Files from this size on go up in parts; below, in one request.
    part_bytes
        Size of a part. S3 takes 5 MiB to 5 GiB, and 10,000 parts: what does not fit is adjusted.
    at_once
        Requests under way at the same time.
    """

    threshold_bytes: int = 100 << 20
    part_bytes: int = 10 << 20
    at_once: int = 10

    def __post_init__(self) -> None:
        for name in ("threshold_bytes", "part_bytes", "at_once"):
            positive(getattr(self, name), name)

    def config(self, *, threshold_bytes: int) -> Any:
        """Return boto3's form of it."""
        from boto3.s3.transfer import TransferConfig

        return TransferConfig(
            multipart_threshold=threshold_bytes,
            multipart_chunksize=self.part_bytes,
            max_concurrency=self.at_once,
            preferred_transfer_client="classic",  # the other one, where it is installed, takes no other limits
        )


@dataclass(frozen=True)
class StoredObject:
    """What one request tells of an object."""

    uri: str
    size_bytes: int
    modified: float
    """Seconds since 1970."""
    checksum: str | None
    """SHA-256 of the whole in hexadecimal where it is noted, else ``algorithm:value`` as S3 tells it."""
    etag: str
    version_id: str | None
    storage_class: str
    encryption: str | None

    @classmethod
    def of(cls, where: Location, head: Mapping[str, Any]) -> StoredObject:
        """Take it from an answer to ``HeadObject``."""
        return cls(
            str(where),
            head["ContentLength"],
            head["LastModified"].timestamp(),
            told(head),
            head.get("ETag", "").strip('"'),
            head.get("VersionId"),
            head.get("StorageClass", "STANDARD"),
            head.get("ServerSideEncryption"),
        )


class _Tally:
    """Adds up what parts report, from whichever thread."""

    def __init__(self, total: int, advance: Callable[[int], None], callback: Callback | None) -> None:
        self._total, self._advance, self._callback = total, advance, callback
        self._done, self._lock = 0, threading.Lock()

    def __call__(self, n_bytes: int) -> None:
        with self._lock:  # a part that is sent again takes back what it had reported
            self._done += n_bytes
            self._advance(n_bytes)
            if self._callback:
                self._callback(self._done, self._total)


def upload(
    path: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    parts: Parts | None = None,
    callback: Callback | None = None,
    progress: bool = True,
) -> StoredObject:
    """Put a file on S3 as one object.

    Readers see the old object, if there is one, until the new one is whole. A failure or
    Ctrl-C leaves no parts behind. The file is read once more, before, for its checksum.

    Parameters
    ----------
    path
        Of a local file.
    uri
        ``s3://bucket/key``.
    storage_options
        As for :func:`lobster_zarr.open`.
    parts
        How it is cut; None for 10 MiB parts from 100 MiB on, ten at once.
    callback
        Called with the bytes that have gone and those of the whole, from one thread at a time.
    progress
        Show a bar when on a terminal.

    Returns
    -------
    StoredObject
        As S3 then tells it.

    Raises
    ------
    NotFoundError
        There is no such file.
    StorageError
        S3 refused or failed.
    VerificationError
        What lies there is not what was sent: another upload to the key came between, or it is damaged.
    """
    from boto3.s3.transfer import ProgressCallbackInvoker, create_transfer_manager

    cut, where, access, source = parts or Parts(), _object(uri), Access.of(storage_options), Path(path)
    try:
        checksum, size = sha256(source), source.stat().st_size
    except FileNotFoundError as error:
        raise missing(Location("file", str(source))) from error
    except OSError as error:
        raise refused_by_system(error, READ, source.name, Location("file", str(source.parent))) from error
    extra = {"ChecksumAlgorithm": "SHA256", "Metadata": {NOTED_SHA256: checksum}, **access.put_arguments(size)}
    bars = Progress(enabled=progress)
    with (
        s3_client(where, access, WRITE) as client,
        bars.phase(f"Upload {source.name}", size, "B") as advance,
    ):
        tally = ProgressCallbackInvoker(_Tally(size, advance, callback))
        with create_transfer_manager(client, cut.config(threshold_bytes=cut.threshold_bytes)) as transfers:
            transfers.upload(str(source), where.root, where.prefix, extra, [tally]).result()
        head = _head(client, where, access)
        wrong = difference(source, {**head, "Metadata": {}}, _part_bytes(client, where, access, head))
    if wrong:
        msg = f"{source} {wrong} in {where}: it is damaged, or another upload came between. Upload it again."
        raise VerificationError(msg)
    return StoredObject.of(where, head)


def download(
    uri: str | os.PathLike[str],
    path: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    parts: Parts | None = None,
    callback: Callback | None = None,
    progress: bool = True,
) -> Path:
    """Fetch an object of S3 to a local file, by ranges, several at once.

    Parameters
    ----------
    uri
        ``s3://bucket/key``.
    path
        Of the file, which is replaced; missing folders are made.
    storage_options, parts, callback, progress
        As for `upload`.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    NotFoundError
        There is no such object.
    ConflictError
        It was replaced meanwhile.
    VerificationError
        What arrived is not what was stored; no file is left.
    StorageError
        S3 or the disk refused or failed.
    """
    from boto3.s3.transfer import ProgressCallbackInvoker, create_transfer_manager
    from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

    cut, where, access, target = parts or Parts(), _object(uri), Access.of(storage_options), Path(path)
    bars = Progress(enabled=progress)
    with s3_client(where, access, READ) as client:
        head = _head(client, where, access)
        size = head["ContentLength"]
        with bars.phase(f"Download {target.name}", size, "B") as advance, whole_file(make_folder(target)) as part:
            tally = ProgressCallbackInvoker(_Tally(size, advance, callback))
            config = cut.config(threshold_bytes=cut.part_bytes)
            try:
                with part.open("wb") as file, create_transfer_manager(client, config) as transfers:
                    transfers.download(where.root, where.prefix, file, payer(access), [tally]).result()
            except S3DownloadFailedError as error:
                raise ConflictError(f"{where} was replaced while it was downloaded. Download it again.") from error
            except RetriesExceededError as error:
                msg = f"The download of {where} broke off again and again. Check the network, then try again."
                raise NetworkError(msg) from error
            wrong = difference(part, head, _part_bytes(client, where, access, head))
            if wrong:
                msg = f"{where} arrived damaged: it {wrong}. Download it again; if it stays, upload the file again."
                raise VerificationError(msg)
    return target


def describe(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> StoredObject:
    """Ask S3 about an object: one request.

    Raises
    ------
    NotFoundError, StorageError
        There is none, or S3 refused.
    """
    where, access = _object(uri), Access.of(storage_options)
    with s3_client(where, access, READ) as client:
        return StoredObject.of(where, _head(client, where, access))


def agrees(
    path: str | os.PathLike[str], uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> bool | None:
    """Whether a file is what an object holds, by the sum that S3 itself keeps of it: at most two requests.

    Returns
    -------
    bool or None
        None where S3 keeps none that a file can be compared by.

    Raises
    ------
    NotFoundError, StorageError
        As of `describe`.
    """
    where, access = _object(uri), Access.of(storage_options)
    with s3_client(where, access, READ) as client:
        head = _head(client, where, access)
        told, part_bytes = {**head, "Metadata": {}}, _part_bytes(client, where, access, head)
    if Path(path).stat().st_size == head["ContentLength"] and not is_summed(told, part_bytes):
        return None
    return difference(Path(path), told, part_bytes) is None


def stored_sha256(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> str:
    """Read an object and return the SHA-256 of what S3 holds, in hexadecimal.

    Raises
    ------
    NotFoundError, StorageError
        There is none, or S3 refused.
    """
    where, access, total = _object(uri), Access.of(storage_options), hashlib.sha256()
    with s3_client(where, access, READ) as client:
        answer = client.get_object(Bucket=where.root, Key=where.prefix, **payer(access))
        for block in answer["Body"].iter_chunks(1 << 20):
            total.update(block)
    return total.hexdigest()


def exists(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> bool:
    """Whether there is such an object.

    Raises
    ------
    StorageError
        S3 does not say.
    """
    try:
        describe(uri, storage_options)
    except NotFoundError:
        return False
    return True


def remove(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
    """Delete an object.

    Raises
    ------
    NotFoundError, StorageError
        There is none, or S3 refused.
    """
    where, access = _object(uri), Access.of(storage_options)
    describe(uri, storage_options)  # S3 deletes what is not there without a word
    with s3_client(where, access, DELETE) as client:
        client.delete_object(Bucket=where.root, Key=where.prefix, **payer(access))


def _object(uri: str | os.PathLike[str]) -> Location:
    where = place(uri)
    if where.scheme != "s3" or not where.prefix:
        raise InvalidArgumentError(f"{where} is no object of S3, expected s3://bucket/key.")
    return where


def _head(client: Any, where: Location, access: Access, **options: Any) -> Any:
    key = {"Bucket": where.root, "Key": where.prefix}
    return client.head_object(**key, ChecksumMode="ENABLED", **payer(access), **options)


def _part_bytes(client: Any, where: Location, access: Access, head: Mapping[str, Any]) -> int | None:
    """Return the size of an object's parts, where its sum is made of theirs."""
    if not came_in_parts(head):
        return None
    first = _head(client, where, access, PartNumber=1)
    size: int = first["ContentLength"]
    even = first.get("PartsCount") == -(-head["ContentLength"] // max(size, 1))
    return size if even else None
