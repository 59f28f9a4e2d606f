"""What is kept on the disk: whole or not at all, within its bound, whoever writes it at once, whatever breaks off."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lobster_zarr import cache, cacheindex
from lobster_zarr.cache import Folder, Version

STORE = "https://s3\ns3://lab/a.zarr"
SIZE = 40_000
WRITER = """
import random, sys
from lobster_zarr.cache import Folder, Version

folder, rng = Folder(sys.argv[1], int(sys.argv[2])), random.Random(int(sys.argv[3]))
print("begun", flush=True)
for _ in range(int(sys.argv[4])):
    key = rng.randrange(6)
    body = random.Random(key).randbytes(40_000)
    start = rng.randrange(39_000)
    stop = start + rng.randrange(1, 40_000 - start + 1)
    folder.keep("https://s3\\ns3://lab/a.zarr", f"X/{key}", Version('"e"', 40_000, 1.0), start, body[start:stop])
    found = folder.read("https://s3\\ns3://lab/a.zarr", f"X/{key}", '"e"', slice(start, stop))
    assert found in (None, body[start:stop])
"""


def content(key: int) -> bytes:
    return random.Random(key).randbytes(SIZE)


def keep(folder: Folder, key: int, start: int = 0, stop: int = SIZE, etag: str = '"e"') -> None:
    folder.keep(STORE, f"X/{key}", Version(etag, SIZE, 1.0), start, content(key)[start:stop])


def read(folder: Folder, key: int, part: slice = slice(None), etag: str = '"e"') -> bytes | None:
    return folder.read(STORE, f"X/{key}", etag, slice(part.start or 0, part.stop))


def files(folder: Folder) -> list[Path]:
    return [path for path in (folder.path / "kept").rglob("*") if path.is_file()]


def writer(path: Path, max_bytes: int, seed: int, times: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(path), str(max_bytes), str(seed), str(times)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(cache.__file__).parents[1]
    )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "cache", 1_000_000)


@pytest.mark.parametrize(
    "part", [slice(0, None), slice(-100, None), slice(39_000, None), slice(0, 10), slice(999, 20_001), slice(7, 7)]
)
def test_any_part_of_what_is_kept_in_pieces_is_read(folder, part, monkeypatch):
    monkeypatch.setattr(cache, "PIECE_BYTES", 1_000)
    keep(folder, 1)
    assert len(files(folder)) == 40
    assert folder.read(STORE, "X/1", '"e"', part) == content(1)[part]
    assert folder.holds(STORE, "X/1", '"e"', part)


def test_ranges_join_and_gaps_do_not(folder):
    keep(folder, 1, 0, 100)
    keep(folder, 1, 50, 200)
    keep(folder, 1, 300, 400)
    assert read(folder, 1, slice(20, 190)) == content(1)[20:190]
    assert read(folder, 1, slice(20, 310)) is None
    assert read(folder, 1, slice(0, 10), etag='"other"') is None
    assert read(folder, 1, slice(39_999, 40_001)) is None  # beyond its end
    assert folder.read("https://s3\ns3://lab/b.zarr", "X/1", '"e"', slice(0, 10)) is None
    keep(folder, 1)
    assert len(files(folder)) == 1, "what lies within another range is not kept twice"


def test_what_was_used_least_recently_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_TOUCH_SECONDS", 0)
    folder = Folder(tmp_path, 2 * (SIZE + cacheindex.ROW_BYTES))
    for key in (1, 2):
        keep(folder, key)
    assert read(folder, 1)
    keep(folder, 3)
    assert [read(folder, key) is not None for key in (1, 2, 3)] == [True, False, True]
    folder.keep(STORE, "large", Version('"e"', 10**6, 1.0), 0, bytes(10**6))
    assert [held.n_entries for held in folder.held()] == [2], "what does not fit drives nothing out"


def test_processes_that_write_at_once_share_it_and_keep_the_bound(tmp_path):
    bound = 100_000
    running = [writer(tmp_path, bound, seed, 150) for seed in range(2)]
    for process in running:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error.decode()
    folder = Folder(tmp_path, bound)
    assert sum(path.stat().st_size for path in files(folder)) <= bound
    (held,) = folder.held()
    assert held.n_bytes == sum(path.stat().st_size for path in files(folder)) > 0
    for key in range(6):
        for start in range(0, SIZE, 500):
            assert read(folder, key, slice(start, start + 500)) in (None, content(key)[start : start + 500])


def test_a_process_that_is_killed_leaves_a_cache_that_works(tmp_path):
    for seed in range(3):
        process = writer(tmp_path, 150_000, seed, 10**9)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        time.sleep(0.05 + 0.05 * seed)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        folder = Folder(tmp_path, 150_000)
        for key in range(6):
            assert read(folder, key) in (None, content(key))
            keep(folder, key)
            assert read(folder, key) == content(key)
        with sqlite3.connect(folder.path / "index.sqlite") as database:
            (counted,) = database.execute("SELECT n_bytes FROM kept").fetchone()
        database.close()
        (held,) = folder.held()
        assert counted == held.n_bytes + held.n_entries * cacheindex.ROW_BYTES <= 150_000


def test_what_the_dead_have_left_is_swept_away(folder):
    keep(folder, 1)
    left = [folder.path / "new" / "a", folder.path / "kept" / "ab" / "c"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    (fresh := folder.path / "new" / "b").write_bytes(b"of one that lives")
    for path in (*left, *files(folder), folder.path / "swept"):
        os.utime(path, (0, 0))
    again = Folder(folder.path.parent)
    assert read(again, 1) == content(1)
    assert [path.exists() for path in (*left, fresh)] == [False, False, True]


@pytest.mark.parametrize("damage", ["flipped", "shortened", "emptied", "gone", "exchanged"])
def test_a_damaged_entry_is_dropped(folder, damage):
    keep(folder, 1, 0, 500)
    (path,) = files(folder)
    body = path.read_bytes()
    keep(folder, 2, 0, 500)
    (other,) = set(files(folder)) - {path}
    bad = {"flipped": bytes([body[0] ^ 1]) + body[1:], "shortened": body[:-1], "emptied": b""}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bad.get(damage, other.read_bytes()))
    assert read(folder, 1, slice(0, 500)) is None
    assert not folder.holds(STORE, "X/1", '"e"', slice(0, 500))
    keep(folder, 1, 0, 500)
    assert read(folder, 1, slice(0, 500)) == content(1)[:500]


@pytest.mark.parametrize("name", ["index.sqlite"])
def test_a_damaged_index_begins_anew(folder, name):
    keep(folder, 1)
    (folder.path / name).write_bytes(b"this is no database" * 500)
    again = Folder(folder.path.parent)
    assert read(again, 1) is None
    keep(again, 1)
    assert read(again, 1) == content(1)


def test_no_name_leaves_the_folder_or_shows_on_the_disk(folder):
    hostile = "../../../escaped\0"
    folder.keep(hostile, hostile, Version(hostile, 4, 1.0), 0, b"body")
    assert folder.read(hostile, hostile, hostile, slice(0, 4)) == b"body"
    (path,) = files(folder)
    assert path.resolve().is_relative_to(folder.path.resolve())
    assert set(path.name) <= set("0123456789abcdef")


def test_the_folder_is_its_users_alone(folder, tmp_path):
    keep(folder, 1)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.path.chmod(0o755)
    assert read(Folder(folder.path.parent), 1) == content(1)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.path.chmod(0o777)
    with pytest.warns(UserWarning, match="others may write to it"):
        assert read(Folder(folder.path.parent), 1) is None


def test_a_disk_that_cannot_be_written_disables_the_cache_once(tmp_path):
    (tmp_path / "file").write_text("no folder")
    folder = Folder(tmp_path / "file")
    with pytest.warns(UserWarning, match="is not used"):
        keep(folder, 1)
    keep(folder, 1)  # said once
    assert read(folder, 1) is None
    assert folder.is_off
    assert folder.held() == []


def test_a_full_disk_disables_the_cache(folder):
    keep(folder, 1, 0, 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file may be larger
    try:
        with pytest.warns(UserWarning, match="Make room"):
            keep(folder, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(Folder(folder.path.parent), 1, slice(0, 100)) == content(1)[:100]
    assert not list((folder.path / "new").iterdir())
