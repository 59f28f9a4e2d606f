"""Files go to S3 and come back byte for byte, in parts, checked; what breaks off leaves nothing."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lobster_zarr import checksum, errors, listing, transfer
from lobster_zarr.place import place
from lobster_zarr.transfer import Parts, download, upload
from lobster_zarr.wholefile import whole_file
from tests.gates import Answer, Asked, gate

if TYPE_CHECKING:
    from tests.s3 import S3Server

MiB = 1 << 20
SMALL = Parts(threshold_bytes=5 * MiB, part_bytes=5 * MiB, at_once=3)
ROOT = Path(__file__).parents[1]


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(12 * MiB + 17))
    return path


def unfinished(s3: S3Server, bucket: str) -> list[Any]:
    return s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])


@pytest.mark.parametrize("n_bytes", [0, 1, 5 * MiB, 12 * MiB + 17], ids=["empty", "byte", "one part", "parts"])
def test_a_file_goes_up_and_comes_back(s3: S3Server, tmp_path: Path, n_bytes: int) -> None:
    source, uri = tmp_path / "a.bin", f"{s3.bucket('transfer-round')}/x/{n_bytes}.bin"
    source.write_bytes(os.urandom(n_bytes))
    stored = upload(source, uri, s3.storage_options, parts=SMALL)
    assert (stored.uri, stored.size_bytes) == (uri, n_bytes)
    assert stored.checksum == sha256(source.read_bytes()).hexdigest()
    assert transfer.describe(uri, s3.storage_options) == stored
    n_parts = s3.client().head_object(Bucket="transfer-round", Key=f"x/{n_bytes}.bin", PartNumber=1).get("PartsCount")
    assert n_parts == {5 * MiB: 1, 12 * MiB + 17: 3}.get(n_bytes)
    target = download(uri, tmp_path / "new" / "b.bin", s3.storage_options, parts=SMALL)
    assert target.read_bytes() == source.read_bytes()
    assert list(target.parent.iterdir()) == [target]


def test_by_default_100_mib_go_up_in_10_mib_parts_ten_at_once() -> None:
    assert Parts() == Parts(threshold_bytes=100 * MiB, part_bytes=10 * MiB, at_once=10)
    with pytest.raises(errors.InvalidArgumentError, match="at_once is 0"):
        Parts(at_once=0)


def test_progress_is_told_from_the_first_byte_to_the_last(s3: S3Server, big: Path, tmp_path: Path) -> None:
    uri, size = f"{s3.bucket('transfer-progress')}/big.bin", big.stat().st_size
    for move in (
        lambda seen: upload(big, uri, s3.storage_options, parts=SMALL, callback=lambda *n: seen.append(n)),
        lambda seen: download(uri, tmp_path / "b", s3.storage_options, parts=SMALL, callback=lambda *n: seen.append(n)),
    ):
        seen: list[tuple[int, int]] = []
        move(seen)
        assert seen[-1] == (size, size)
        assert len(seen) >= 3
        assert {total for _, total in seen} == {size}


def test_every_part_is_sent_with_its_sum(s3: S3Server, big: Path) -> None:
    uri = f"{s3.bucket('transfer-sums')}/big.bin"
    upload(big, uri, s3.storage_options, parts=SMALL)
    told = s3.client().head_object(Bucket="transfer-sums", Key="big.bin", ChecksumMode="ENABLED")
    content = big.read_bytes()
    parts = [sha256(content[at : at + 5 * MiB]).digest() for at in range(0, len(content), 5 * MiB)]
    assert told["ChecksumSHA256"].partition("-")[0] == b64encode(sha256(b"".join(parts)).digest()).decode()


class StopError(Exception):
    pass


# Parts that were never sent hold the file open until they are collected: s3transfer's.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_upload_that_fails_leaves_nothing(s3: S3Server, big: Path) -> None:
    uri = f"{s3.bucket('transfer-abort')}/big.bin"

    def stop(done: int, total: int) -> None:
        if done > 6 * MiB:
            raise StopError

    with pytest.raises(StopError):
        upload(big, uri, s3.storage_options, parts=SMALL, callback=stop)
    assert unfinished(s3, "transfer-abort") == []
    assert not transfer.exists(uri, s3.storage_options)
    gc.collect()


def test_ctrl_c_leaves_nothing(s3: S3Server, big: Path) -> None:
    s3.bucket("transfer-ctrl-c")
    program = textwrap.dedent(f"""
        import sys, time
        from lobster_zarr.transfer import Parts, upload
        def tell(done, total):
            print(done, flush=True)
            time.sleep(0.2)
        upload({str(big)!r}, "s3://transfer-ctrl-c/big.bin", {s3.storage_options!r},
               parts=Parts({5 * MiB}, {5 * MiB}, 1), callback=tell)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        assert len(unfinished(s3, "transfer-ctrl-c")) == 1  # it is under way
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "KeyboardInterrupt" in told
    assert unfinished(s3, "transfer-ctrl-c") == []
    assert not transfer.exists("s3://transfer-ctrl-c/big.bin", s3.storage_options)


@pytest.mark.parametrize("noted", [True, False], ids=["by our sum", "by S3's"])
def test_a_damaged_download_is_found_and_not_kept(s3: S3Server, tmp_path: Path, noted: bool) -> None:
    uri, good = f"{s3.bucket('transfer-damaged')}/a.bin", b"good " * 1000
    (tmp_path / "a.bin").write_bytes(good)
    if noted:
        upload(tmp_path / "a.bin", uri, s3.storage_options)
    else:
        s3.client().put_object(Bucket="transfer-damaged", Key="a.bin", Body=good, ChecksumAlgorithm="CRC32")
    with gate(s3.endpoint) as between:
        options = {**s3.storage_options, "endpoint_url": between.endpoint}
        (tmp_path / "a.bin").write_bytes(b"before")
        between.rule = lambda asked: Answer(200, good[:-1] + b"!") if asked.method == "GET" else None
        with pytest.raises(errors.VerificationError, match="arrived damaged"):
            download(uri, tmp_path / "a.bin", options)
        assert (tmp_path / "a.bin").read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [tmp_path / "a.bin"]
        between.rule = lambda _: None
        assert download(uri, tmp_path / "a.bin", options).read_bytes() == good


def test_an_upload_that_arrived_otherwise_is_found(s3: S3Server, tmp_path: Path) -> None:
    uri = f"{s3.bucket('transfer-otherwise')}/a.bin"
    (tmp_path / "a.bin").write_bytes(b"mine")

    with gate(s3.endpoint) as between:

        def rule(asked: Asked) -> None:
            if asked.method == "HEAD":
                s3.client().put_object(
                    Bucket="transfer-otherwise", Key="a.bin", Body=b"them", ChecksumAlgorithm="SHA256"
                )

        between.rule = rule
        with pytest.raises(errors.VerificationError, match="another upload came between"):
            upload(tmp_path / "a.bin", uri, {**s3.storage_options, "endpoint_url": between.endpoint})


@pytest.mark.parametrize("algorithm", ["SHA256", "CRC32"])
@pytest.mark.parametrize("part_bytes", [None, 5 * MiB], ids=["whole", "in parts"])
def test_what_other_tools_uploaded_is_checked_by_s3s_own_sums(
    s3: S3Server, tmp_path: Path, big: Path, algorithm: str, part_bytes: int | None
) -> None:
    from boto3.s3.transfer import TransferConfig

    bucket = f"transfer-{algorithm.lower()}"
    uri, client = f"{s3.bucket(bucket)}/big-{part_bytes}.bin", s3.client()
    config = TransferConfig(multipart_threshold=part_bytes or 1 << 30, multipart_chunksize=part_bytes or 1 << 30)
    client.upload_file(str(big), bucket, f"big-{part_bytes}.bin", {"ChecksumAlgorithm": algorithm}, Config=config)
    head = client.head_object(Bucket=bucket, Key=f"big-{part_bytes}.bin", ChecksumMode="ENABLED")
    assert checksum.difference(big, head, part_bytes) is None
    other = tmp_path / "other.bin"
    other.write_bytes(big.read_bytes()[:-1] + b"\0")
    if other.read_bytes() != big.read_bytes():
        assert "checksum" in (checksum.difference(other, head, part_bytes) or "")
    assert download(uri, tmp_path / "b", s3.storage_options).read_bytes() == big.read_bytes()


def test_an_etag_that_is_no_md5_is_not_taken_for_one(big: Path) -> None:
    head = {"ContentLength": big.stat().st_size, "ETag": f'"{"0" * 32}"', "ServerSideEncryption": "aws:kms"}
    assert checksum.difference(big, head, None) is None
    assert checksum.difference(big, {**head, "ServerSideEncryption": "AES256"}, None) is not None
    assert "bytes" in (checksum.difference(big, {**head, "ContentLength": 1}, None) or "")


def test_crc32c_is_that_of_the_standard(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123456789")  # RFC 3720: e3069283
    assert checksum.s3_sum(tmp_path / "a", "ChecksumCRC32C") == b64encode(bytes.fromhex("e3069283")).decode()
    assert checksum.s3_sum(tmp_path / "a", "ChecksumCRC32") == b64encode(bytes.fromhex("cbf43926")).decode()


def test_what_is_not_there_is_said(s3: S3Server, tmp_path: Path) -> None:
    bucket, options = s3.bucket("transfer-missing"), s3.storage_options
    for attempt in (
        lambda: download(f"{bucket}/a.bin", tmp_path / "a", options),
        lambda: transfer.describe(f"{bucket}/a.bin", options),
        lambda: transfer.remove(f"{bucket}/a.bin", options),
        lambda: upload(tmp_path / "absent", f"{bucket}/a.bin", options),
    ):
        with pytest.raises(errors.NotFoundError, match="There is no file at"):
            attempt()
    with pytest.raises(errors.BucketNotFoundError):
        download("s3://transfer-no-such-bucket/a.bin", tmp_path / "a", options)
    with pytest.raises(errors.InvalidArgumentError, match="no object of S3"):
        download(bucket, tmp_path / "a", options)
    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(errors.BucketNotFoundError):
        upload(tmp_path / "a", "s3://transfer-no-such-bucket/a.bin", options)


def test_what_is_denied_is_said_with_the_permission(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.bucket("transfer-denied")
    (tmp_path / "a").write_bytes(b"a")
    upload(tmp_path / "a", f"{bucket}/a.bin", s3.storage_options)
    nobody = {**s3.storage_options, **s3.user("transfer-nobody")}
    with s3.enforced_access():
        with pytest.raises(PermissionError, match="s3:GetObject"):
            download(f"{bucket}/a.bin", tmp_path / "b", nobody)
        with pytest.raises(PermissionError, match="s3:PutObject"):
            upload(tmp_path / "a", f"{bucket}/a.bin", nobody)


def test_no_secret_is_in_logs_or_errors(s3: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"{s3.bucket('transfer-canary')}/a.bin"
    secrets = {"key": "CANARYKEY0001", "secret": "CANARYSECRET0002", "token": "CANARYTOKEN0003"}
    (tmp_path / "a").write_bytes(b"a")
    with caplog.at_level(logging.DEBUG):
        upload(tmp_path / "a", uri, {**s3.storage_options, **secrets})
        with pytest.raises(errors.NotFoundError) as caught:
            download(f"{uri}.absent", tmp_path / "b", {**s3.storage_options, **secrets})
    assert "botocore" in {record.name.partition(".")[0] for record in caplog.records}
    for secret in secrets.values():
        assert secret not in caplog.text
        assert secret not in f"{caught.value} {caught.value!r} {caught.value.__cause__}"


def test_what_is_written_is_encrypted_and_classed_as_said(s3: S3Server, tmp_path: Path) -> None:
    uri = f"{s3.bucket('transfer-class')}/a.bin"
    (tmp_path / "a").write_bytes(b"a" * 200_000)
    stored = upload(tmp_path / "a", uri, {**s3.storage_options, "sse": "AES256", "storage_class": "STANDARD_IA"})
    assert (stored.encryption, stored.storage_class) == ("AES256", "STANDARD_IA")


def test_a_file_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path, s3: S3Server) -> None:
    def broken(refusal: type[OSError]) -> None:
        with whole_file(tmp_path / "a") as part:
            part.write_bytes(b"half")
            raise refusal

    for refusal in (PermissionError, OSError):
        with pytest.raises(refusal) as caught:
            broken(refusal)
        assert isinstance(caught.value, errors.StorageError)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    uri = f"{s3.bucket('transfer-disk')}/a"
    upload(tmp_path / "file", uri, s3.storage_options)
    with pytest.raises(errors.StorageError, match="cannot write"):
        download(uri, tmp_path / "file" / "below", s3.storage_options)


FILES = [
    "a.h5ad",
    "b.csv",
    "runs/c.h5ad",
    "runs/2024/d.h5ad",
    "e.zarr/zarr.json",
    "e.zarr/x/c/0",
    "runs/f.zarr/zarr.json",
]
LISTED = {
    "*": ["a.h5ad", "b.csv", "e.zarr"],
    "*.h5ad": ["a.h5ad"],
    "*.zarr": ["e.zarr"],
    "runs/*": ["runs/c.h5ad", "runs/f.zarr"],
    "*/*.h5ad": ["runs/c.h5ad"],
    "**/*.h5ad": ["a.h5ad", "runs/2024/d.h5ad", "runs/c.h5ad"],
    "**/runs/*.h5ad": ["runs/c.h5ad"],
    "**": ["a.h5ad", "b.csv", "e.zarr", "runs/2024/d.h5ad", "runs/c.h5ad", "runs/f.zarr"],
    "[ab].*": ["a.h5ad", "b.csv"],
    "none*": [],
}


@pytest.mark.parametrize("pattern", LISTED)
def test_files_and_stores_are_listed_alike_here_and_on_s3(s3: S3Server, tmp_path: Path, pattern: str) -> None:
    client = s3.client()
    if s3.bucket("transfer-list") and not client.list_objects_v2(Bucket="transfer-list").get("Contents"):
        for name in FILES:
            client.put_object(Bucket="transfer-list", Key=f"lab/{name}", Body=b"")
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    expected = LISTED[pattern]
    assert listing.names(place(tmp_path), None, pattern) == sorted(str(tmp_path / name) for name in expected)
    found = listing.names(place("s3://transfer-list/lab"), s3.storage_options, pattern)
    assert found == sorted(f"s3://transfer-list/lab/{name}" for name in expected)


def test_a_folder_that_is_not_there_is_said(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.bucket("transfer-list-none")
    assert listing.names(place(bucket), s3.storage_options) == []
    for where in (place(f"{bucket}/none"), place(tmp_path / "none")):
        with pytest.raises(errors.NotFoundError, match="none"):
            listing.names(where, s3.storage_options)
    with pytest.raises(errors.InvalidArgumentError, match="pattern"):
        listing.names(place(tmp_path), None, "../*")
