"""S3's access logs: lines of the documented form, what stands in them, and what is none of it."""

from __future__ import annotations

import gzip
import json
import time
from typing import TYPE_CHECKING

import pytest

from lobster_zarr import accesslog, errors
from lobster_zarr.accesslog import analyze_logs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.s3 import S3Server

OWNER = "79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be"
AGENT = "aws-cli/2.0 (x86_64) botocore/2"


def line(
    operation: str = "REST.GET.OBJECT",
    key: str = "a.zarr/X/c/0",
    *,
    day: str = "06/Feb/2019",
    requester: str = "arn:aws:iam::123456789012:user/ann",
    status: str = "200",
    error: str = "-",
    sent: str = "100",
    agent: str = AGENT,
    tail: str = "- s9lzHYrFp76ZVxRcpX9+5cjAnEH2ROuNkd2BHfIa6UkFVdtjf5mKR3/eTPFvsiP/XV/VLi31234= SigV4 "
    "ECDHE-RSA-AES128-GCM-SHA256 AuthHeader lab.s3.us-west-1.amazonaws.com TLSV1.2 - Yes us-east-1",
) -> str:
    """One record as the user guide prints them."""
    asked = f'"GET /lab/{key} HTTP/1.1"' if key != "-" else '"GET /lab?versioning HTTP/1.1"'
    return (
        f"{OWNER} lab [{day}:00:00:38 +0000] 192.0.2.3 {requester} 3E57427F3EXAMPLE {operation} {key} "
        f'{asked} {status} {error} {sent} 4406 7 6 "-" "{agent}" {tail}'
    )


LINES = [
    line(),
    line(key="a.zarr/zarr.json", sent="50"),
    line("REST.GET.VERSIONING", "-", requester="-", agent="S3Console/0.4"),
    line(key="runs/b%2520c.h5ad", day="07/Feb/2019", sent="7"),  # a blank, encoded twice
    line("BATCH.DELETE.OBJECT", "b%2525Y.h5ad", status="204", sent="-"),  # encoded once: b%25Y
    line(status="404", error="NoSuchKey", sent="297"),
    line(agent='Mozilla "quoted" (a "b") 1', sent="1"),
    line(status="403", error="AccessDenied", sent="243", requester="-", day="07/Feb/2019"),
    line("S3.EXPIRE.OBJECT", "temp/x").replace('"GET /lab/temp/x HTTP/1.1"', "-").replace(f'"-" "{AGENT}"', "- -"),
    line(tail="-"),  # as they were before fields were added at the end
    line(tail=line().rsplit('" ', 1)[1] + " and more fields of a later year"),
]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    (folder / "2019").mkdir(parents=True)
    (folder / "2019-02-06-00-01").write_text("\n".join(LINES[:6]) + "\n")
    (folder / "2019" / "more.gz").write_bytes(gzip.compress("\r\n".join(LINES[6:]).encode()))
    return folder


def test_requests_are_added_up(logs: Path) -> None:
    told = analyze_logs(logs)
    assert (told.total.n_requests, told.n_files, told.n_malformed) == (len(LINES), 2, 0)
    assert told.total.n_bytes == 100 + 50 + 100 + 7 + 297 + 1 + 243 + 100 + 100 + 100
    operations = {sums.name: sums.n_requests for sums in told.operations}
    assert operations == {
        "REST.GET.OBJECT": 8,
        "REST.GET.VERSIONING": 1,
        "BATCH.DELETE.OBJECT": 1,
        "S3.EXPIRE.OBJECT": 1,
    }
    assert told.errors == {"NoSuchKey": 1, "AccessDenied": 1}
    assert told.total.n_errors == 2
    assert [(day.name, day.n_requests) for day in told.days] == [("2019-02-06", 9), ("2019-02-07", 2)]
    assert {sums.name: sums.n_requests for sums in told.requesters}["-"] == 2


def test_a_store_is_one_name_and_keys_are_decoded(logs: Path) -> None:
    stores = {sums.name: sums for sums in analyze_logs(logs).stores}
    assert set(stores) == {"lab/a.zarr", "lab/runs/b c.h5ad", "lab/b%25Y.h5ad", "lab/temp/x"}
    assert (stores["lab/a.zarr"].n_requests, stores["lab/a.zarr"].n_errors) == (7, 2)


def test_lines_that_are_none_are_counted_and_named(tmp_path: Path) -> None:
    wrong = ["not a line", line(day="06/Feb"), line(day="06/Foo/2019"), line(status="ok"), line()[:250], "x" * 100_000]
    (tmp_path / "log").write_text("\n".join([LINES[0], *wrong, "", LINES[1]]))
    told = analyze_logs(tmp_path)
    assert (told.total.n_requests, told.n_malformed) == (2, len(wrong))
    assert [m.line for m in told.malformed] == [2, 3, 4, 5, 6, 7]
    assert told.malformed[0].text == "not a line"
    assert told.malformed[0].file.endswith("log")
    assert f"{len(wrong)} lines" in str(told)


@pytest.mark.parametrize(
    "hostile", ['" 200 - 1 1 1 1 "' * 1500, '" 200 - 1 1 1 1 "-" "' * 1000 + ' x"y', '" "' * 9000 + 'x"y']
)
def test_a_hostile_line_takes_no_time(tmp_path: Path, hostile: str) -> None:
    (tmp_path / "log").write_text(line().split('" 200')[0] + '" 200 - 1 1 1 1 "' + hostile)
    start = time.perf_counter()
    assert analyze_logs(tmp_path).n_malformed == 1
    assert time.perf_counter() - start < 2


def test_too_many_names_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesslog, "MOST_NAMES", 5)
    (tmp_path / "log").write_text("\n".join(line(key=f"file{n}") for n in range(20)))
    stores = analyze_logs(tmp_path).stores
    assert (stores[0].name, stores[0].n_requests, len(stores)) == ("(others)", 15, 6)


def test_logs_on_s3_are_those_on_disk(s3: S3Server, logs: Path) -> None:
    s3.bucket("logs-on-s3")
    client = s3.client()
    for path in [path for path in logs.rglob("*") if path.is_file()]:
        client.upload_file(str(path), "logs-on-s3", f"access-logs/{path.relative_to(logs)}")
    client.put_object(Bucket="logs-on-s3", Key="access-logs-2/other", Body=LINES[0].encode())
    there, here = analyze_logs("s3://logs-on-s3/access-logs/", s3.storage_options), analyze_logs(logs)
    assert {**there.to_dict(), "source": ""} == {**here.to_dict(), "source": ""}
    assert analyze_logs("s3://logs-on-s3/access-logs", s3.storage_options).n_files == 3  # a prefix, as S3 has them


def test_the_report_fits_80_columns(tmp_path: Path) -> None:
    key = "a/" * 60 + "b.h5ad"
    (tmp_path / "log").write_text("\n".join([line(key=key, requester="arn:aws:sts::1:" + "x" * 90), "?" * 200, *LINES]))
    told = analyze_logs(tmp_path)
    assert max(map(len, str(told).splitlines())) <= 80
    assert json.loads(json.dumps(told.to_dict()))["total"]["n_requests"] == len(LINES) + 1


def test_no_logs_and_no_file_of_logs(s3: S3Server, tmp_path: Path) -> None:
    s3.bucket("no-logs")
    for where in (tmp_path / "none", tmp_path, "s3://no-logs/x"):
        with pytest.raises(errors.NotFoundError, match="no logs"):
            analyze_logs(where, s3.storage_options)
    (tmp_path / "log.gz").write_bytes(b"plain")
    with pytest.raises(errors.InvalidArgumentError, match="no compressed file"):
        analyze_logs(tmp_path)
    with pytest.raises(errors.UnsupportedError):
        analyze_logs("gs://bucket/logs")
