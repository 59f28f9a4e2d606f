"""Checksums of a file, and those that S3 tells of an object: whether the two are the same bytes.

Knows S3's names, and that the sum of an object that came in parts is the sum
of their sums. Must not talk to a network.
"""

from __future__ import annotations

import hashlib
import zlib
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Protocol

import google_crc32c

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

NOTED_SHA256 = "lobster-zarr-sha256"
"""User metadata of an object: the SHA-256 of the whole, which S3 does not give for one that came in parts."""
_BLOCK_BYTES = 1 << 20


class _Sum(Protocol):
    def update(self, block: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._crc = 0

    def update(self, block: bytes) -> None:
        self._crc = zlib.crc32(block, self._crc)

    def digest(self) -> bytes:
        return self._crc.to_bytes(4, "big")


_SUMS: dict[str, Callable[[], _Sum]] = {
    "ChecksumSHA256": hashlib.sha256,
    "ChecksumCRC32C": google_crc32c.Checksum,
    "ChecksumCRC32": _Crc32,
}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_bytes(content: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def told(head: Mapping[str, Any]) -> str | None:
    """Return the checksum that an answer about an object tells, or None.

    Hexadecimal SHA-256 of the whole where the object notes it, else S3's own, else the ETag: with
    the name of the algorithm in front.
    """
    if noted := head.get("Metadata", {}).get(NOTED_SHA256):
        return str(noted)
    for name in _SUMS:
        if name in head:
            return f"{name.removeprefix('Checksum').lower()}:{head[name]}"
    return f"etag:{head['ETag'].strip(chr(34))}" if "ETag" in head else None


def came_in_parts(head: Mapping[str, Any]) -> bool:
    """Whether S3's sum of an object is one of the sums of its parts."""
    sums = [head[name] for name in _SUMS if name in head]
    if "ChecksumType" in head:
        return bool(head["ChecksumType"] == "COMPOSITE")
    return any("-" in value for value in sums) or (bool(sums) and "-" in head.get("ETag", ""))


def difference(path: Path, head: Mapping[str, Any], part_bytes: int | None) -> str | None:
    """Say in what a file differs from an object, by the best sum that S3 tells; None where it does not.

    Parameters
    ----------
    path
        Of the file.
    head
        Answer to ``HeadObject`` with ``ChecksumMode="ENABLED"``.
    part_bytes
        Size of the object's parts, where it came in parts; None where that is not known.
    """
    size = path.stat().st_size
    if size != head["ContentLength"]:
        return f"has {size:,} bytes, expected {head['ContentLength']:,}"
    pairs: Iterable[tuple[str, str]] = ()
    if noted := head.get("Metadata", {}).get(NOTED_SHA256):
        pairs = [(sha256(path), noted)]
    elif (name := next((n for n in _SUMS if n in head), None)) and (part_bytes or not came_in_parts(head)):
        pairs = [(s3_sum(path, name, part_bytes if came_in_parts(head) else None), head[name].partition("-")[0])]
    elif _is_md5(head):
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        pairs = [(found, head["ETag"].strip('"'))]
    return next((f"has checksum {ours}, expected {theirs}" for ours, theirs in pairs if ours != theirs), None)


def is_summed(head: Mapping[str, Any], part_bytes: int | None) -> bool:
    """Whether an answer tells a sum by which `difference` can tell; arguments as there."""
    by_s3 = any(name in head for name in _SUMS) and bool(part_bytes or not came_in_parts(head))
    return by_s3 or NOTED_SHA256 in head.get("Metadata", {}) or _is_md5(head)


def _is_md5(head: Mapping[str, Any]) -> bool:
    """Whether the ETag is the MD5 of the bytes: of one part, and not encrypted with a key of the caller's."""
    plain = head.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in head
    return plain and len(head.get("ETag", "").strip('"')) == 2 * hashlib.md5(usedforsecurity=False).digest_size


def s3_sum(path: Path, name: str = "ChecksumSHA256", part_bytes: int | None = None) -> str:
    """Return the checksum of a file as S3 tells it, without the number of parts.

    Parameters
    ----------
    path
        Of the file; it is read once.
    name
        As in S3's answers.
    part_bytes
        Size of the parts that it went up in; None where it went up whole.
    """
    with path.open("rb") as file:
        digests = [_digest(blocks, name) for blocks in _parts(file, part_bytes or path.stat().st_size)]
    whole = digests[0] if part_bytes is None else _digest(iter(digests), name)
    return b64encode(whole).decode()


def _digest(blocks: Iterator[bytes], name: str) -> bytes:
    total = _SUMS[name]()
    for block in blocks:
        total.update(block)
    return total.digest()


def _parts(file: BinaryIO, part_bytes: int) -> Iterator[Iterator[bytes]]:
    """Yield the blocks of each part, which are to be used up before the next; one part at least."""
    end = file.seek(0, 2)
    for start in range(0, max(end, 1), max(part_bytes, 1)):
        stop = min(start + part_bytes, end)
        file.seek(start)
        yield (file.read(min(_BLOCK_BYTES, stop - at)) for at in range(start, stop, _BLOCK_BYTES))
