"""The command line: what it prints, what it writes, and how it fails.

Run as `main` in this process, with real arguments and streams, and a few times
as the program that users run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from oracle import assert_equal, sliced, stored
from test_convert import cells, convert, read

from lobster_zarr import cli
from lobster_zarr.report import human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.s3 import S3Server

# pandas deprecates a setting that anndata asks for at every text column.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option:Warning")

ROOT = Path(__file__).parents[1]
PREDICATE = "cell_type == 'T cell' and n_counts > 300"
GENES = ["gene7", "gene2"]


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Return a function that runs the command line in this process."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["lobster-zarr", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return call


def program(*arguments: object, **environment: str) -> Done:
    """Run the command line as a program of its own."""
    code = "from lobster_zarr.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120, env=env)
    return Done(done.returncode, done.stdout, done.stderr)


class Atlas(NamedTuple):
    adata: ad.AnnData
    h5ad: Path
    store: Path

    @property
    def rows(self) -> np.ndarray:
        """The cells of PREDICATE, by pandas."""
        obs = self.adata.obs
        return np.flatnonzero((obs["cell_type"] == "T cell") & (obs["n_counts"] > 300))


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    path = tmp_path_factory.mktemp("cli")
    adata = cells()
    adata.write_h5ad(path / "a.h5ad", convert_strings_to_categoricals=False)
    convert(path / "a.h5ad", path / "a.zarr", sort_by="cell_type")
    return Atlas(adata, path / "a.h5ad", path / "a.zarr")


# ---------------------------------------------------------------- each command


def test_convert(run: Callable[..., Done], atlas: Atlas, tmp_path: Path) -> None:
    dest = tmp_path / "b.zarr"
    options = ["--sort-by", "donor", "--sort-by", "cell_type", "--no-gene-major", "--codec", "fast"]
    done = run("convert", atlas.h5ad, dest, *options, "--memory-limit", "1GB", "--json")
    assert (done.status, done.err) == (0, "")
    told = json.loads(done.out)
    assert (told["n_obs"], told["n_vars"], told["codec"], told["gene_major"]) == (60, 20, "fast", [])
    assert told["sort_by"] == ["donor", "cell_type"]
    assert_equal(read(dest), stored(atlas.adata))
    done = run("convert", atlas.h5ad, dest, "--overwrite", "--gene-major")
    assert (done.status, done.err) == (0, "")
    assert "60 cells × 20 genes" in done.out
    assert "replaced a store" in done.out
    assert (dest / "layers" / "counts" / "csc").exists()


def test_info(run: Callable[..., Done], atlas: Atlas) -> None:
    done = run("info", atlas.store)
    assert (done.status, done.err) == (0, "")
    for word in ("60 × 20", "sorted by cell_type", "csr + csc", "donor: category (2)", "X_umap"):
        assert word in done.out
    told = json.loads(run("info", atlas.store, "--json").out)
    assert (told["n_obs"], told["n_vars"], told["sort_by"]) == (60, 20, ["cell_type"])
    assert list(told["obs"]) == list(atlas.adata.obs)


def test_query_counts(run: Callable[..., Done], atlas: Atlas) -> None:
    done = run("query", atlas.store, PREDICATE)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"{len(atlas.rows)} cells")
    told = json.loads(run("query", atlas.store, PREDICATE, "--json").out)
    assert (told["n_obs"], told["expr"]) == (len(atlas.rows), PREDICATE)
    assert told["requests"] == 0, "all of so small a table is in the metadata"
    sql = run("query", atlas.store, "cell_type = 'T cell' AND n_counts > 300", "--json")
    assert json.loads(sql.out)["n_obs"] == len(atlas.rows)


@pytest.mark.parametrize("order", ["source", "storage"])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr", ".parquet", ".csv"])
def test_query_writes(run: Callable[..., Done], atlas: Atlas, tmp_path: Path, suffix: str, order: str) -> None:
    out = tmp_path / f"out{suffix}"
    genes = GENES if order == "source" else sorted(GENES)
    arguments = ["query", atlas.store, "n_counts > 300", "--var", ", ".join(genes), "-o", out, "--order", order]
    done = run(*arguments, "--json")
    assert (done.status, done.err) == (0, "")
    rows = np.flatnonzero(atlas.adata.obs["n_counts"] > 300)
    if order == "storage":
        codes = atlas.adata.obs["cell_type"].cat.codes.to_numpy()[rows].astype(int)
        rows = rows[np.argsort(np.where(codes < 0, 99, codes), kind="stable")]
    assert json.loads(done.out)["n_obs"] == len(rows)
    assert json.loads(done.out)["out"] == str(out)
    expected = sliced(stored(atlas.adata), rows, genes)
    if suffix == ".h5ad":
        assert_equal(stored(ad.read_h5ad(out)), expected)
    elif suffix == ".zarr":
        assert_equal(read(out), stored(expected))
    else:
        frame = pd.read_parquet(out) if suffix == ".parquet" else pd.read_csv(out)
        assert frame["index"].tolist() == list(expected.obs_names)
        assert frame["n_genes"].tolist() == expected.obs["n_genes"].tolist()
        assert frame["n_counts"].to_numpy("float32").tolist() == expected.obs["n_counts"].tolist()
        assert frame["cell_type"].isna().tolist() == expected.obs["cell_type"].isna().tolist()
        assert frame["cell_type"].dropna().astype(str).tolist() == list(expected.obs["cell_type"].dropna())
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_query_of_no_cell_writes_all_the_same(run: Callable[..., Done], atlas: Atlas, tmp_path: Path) -> None:
    for suffix in (".h5ad", ".zarr", ".parquet", ".csv"):
        done = run("query", atlas.store, "n_counts > 1e9", "-o", tmp_path / f"none{suffix}")
        assert (done.status, done.err) == (0, "no row matches n_counts > 1e9.\n")
    assert ad.read_h5ad(tmp_path / "none.h5ad").shape == (0, 20)
    assert read(tmp_path / "none.zarr").shape == (0, 20)
    assert list(pd.read_csv(tmp_path / "none.csv").columns) == ["index", *atlas.adata.obs]
    assert len(pd.read_parquet(tmp_path / "none.parquet")) == 0


def test_a_column_called_index_is_written_too(run: Callable[..., Done], tmp_path: Path) -> None:
    adata = ad.AnnData(np.zeros((2, 1), "float32"), obs=pd.DataFrame({"index": [7, 8]}, index=["a", "b"]))
    convert(adata, tmp_path / "a.zarr")
    for suffix, reader in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
        done = run("query", tmp_path / "a.zarr", "obs.index > 7", "-o", tmp_path / f"out{suffix}")
        assert (done.status, done.err) == (0, "")
        assert sorted(map(str, reader(tmp_path / f"out{suffix}").iloc[0])) == ["8", "b"]


def test_export(run: Callable[..., Done], atlas: Atlas, tmp_path: Path) -> None:
    sizes = []
    for compression in ("gzip", "lzf", "none"):
        done = run("export", atlas.store, tmp_path / f"{compression}.h5ad", "--compression", compression)
        assert (done.status, done.err) == (0, "")
        assert_equal(stored(ad.read_h5ad(tmp_path / f"{compression}.h5ad")), stored(atlas.adata))
        sizes.append((tmp_path / f"{compression}.h5ad").stat().st_size)
    assert human_bytes(sizes[-1]) in done.out
    assert run("export", atlas.store, tmp_path / "gzip.h5ad", "--overwrite").status == 0


def test_verify(run: Callable[..., Done], atlas: Atlas, tmp_path: Path) -> None:
    done = run("verify", atlas.store, "--against", atlas.h5ad)
    assert (done.status, done.err) == (0, "")
    assert "is sound" in done.out
    assert "equal to the source" in done.out
    shutil.copytree(atlas.store, tmp_path / "b.zarr")
    chunk = next(p for p in (tmp_path / "b.zarr/layers/counts/data").rglob("*") if p.name != "zarr.json")
    while chunk.is_dir():
        chunk = next(chunk.iterdir())
    chunk.unlink()
    done = run("verify", tmp_path / "b.zarr")
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert "layers/counts" in done.err


def test_help_names_every_command(run: Callable[..., Done]) -> None:
    done = run("--help")
    assert (done.status, done.err) == (0, "")
    for command in ("convert", "info", "query", "sql", "export", "verify", "demo"):
        assert command in done.out
        help_ = run(command, "--help")
        assert (help_.status, help_.err) == (0, "")
        assert command in help_.out


# ---------------------------------------------------------------- S3


def test_s3_by_option_and_by_environment(
    run: Callable[..., Done], atlas: Atlas, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uri = f"{s3.bucket('cli')}/a.zarr"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    endpoint = ["--endpoint-url", s3.endpoint]
    assert run("convert", atlas.h5ad, uri, *endpoint).err == ""
    told = run("info", uri, *endpoint, "--json").out
    assert json.loads(told)["n_obs"] == 60
    assert run("export", uri, tmp_path / "a.h5ad", *endpoint).status == 0
    assert run("verify", uri, "--against", tmp_path / "a.h5ad", *endpoint).status == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    assert run("info", uri, "--json").out == told
    assert json.loads(run("query", uri, PREDICATE, "--json").out)["n_obs"] == len(atlas.rows)

    for key in ("cli-absent/a.zarr", "cli/absent.zarr"):
        done = run("info", f"s3://{key}")
        assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
        assert key.rpartition("/")[0 if "cli-absent" in key else 2] in done.err
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    done = run("info", uri)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "AWS_SECRET_ACCESS_KEY" in done.err


# ---------------------------------------------------------------- failures


# What is asked for ({h5ad}, {store} and {tmp} are paths), and what the one line names.
FAILURES: dict[str, tuple[list[str], list[str]]] = {
    "a wrong column": (["query", "{store}", "cell_typ == 'T cell'"], ["cell_typ", "'cell_type'"]),
    "a wrong column in SQL": (["query", "{store}", "donr = 'd1'"], ["donr", "'donor'"]),
    "a wrong gene": (["query", "{store}", "n_counts > 0", "--var", "gen2", "-o", "{tmp}/x.h5ad"], ["gen2", "gene2"]),
    "a wrong type": (["query", "{store}", "n_counts == 'many'"], ["n_counts"]),
    "half a predicate": (["query", "{store}", "n_counts >"], ["n_counts >"]),
    "code": (["query", "{store}", "__import__('os').system('true')"], ["__import__"]),
    "a wrong sort": (["convert", "{h5ad}", "{tmp}/new.zarr", "--sort-by", "donr"], ["donr", "'donor'"]),
    "no such file": (["convert", "{tmp}/absent.h5ad", "{tmp}/new.zarr"], ["absent.h5ad"]),
    "no HDF5": (["convert", "{tmp}/text.h5ad", "{tmp}/new.zarr"], ["text.h5ad"]),
    "a truncated file": (["convert", "{tmp}/cut.h5ad", "{tmp}/new.zarr"], ["cut.h5ad", "truncated"]),
    "no store": (["info", "{tmp}/absent.zarr"], ["absent.zarr"]),
    "a folder": (["info", "{tmp}/folder"], ["folder"]),
    "a file for a store": (["query", "{tmp}/a.csv", "n_counts > 0"], ["a.csv"]),
    "somebody's folder": (["convert", "{h5ad}", "{tmp}/folder", "--overwrite"], ["folder", "thesis.tex"]),
    "the store is there": (["convert", "{h5ad}", "{store}"], ["a.zarr", "--overwrite"]),
    "a bad codec": (["convert", "{h5ad}", "{tmp}/new.zarr", "--codec", "gzip"], ["gzip", "compatible"]),
    "a bad limit": (["convert", "{h5ad}", "{tmp}/new.zarr", "--memory-limit", "much"], ["much", "2GB"]),
    "a bad order": (["query", "{store}", "n_counts > 0", "--order", "random"], ["random", "storage"]),
    "an unknown suffix": (["query", "{store}", "n_counts > 0", "-o", "{tmp}/out.xlsx"], ["out.xlsx", ".parquet"]),
    "an unknown suffix of an export": (["export", "{store}", "{tmp}/out.zarr"], ["out.zarr", ".h5ad"]),
    "the output is there": (["query", "{store}", "donor == 'd1'", "-o", "{tmp}/a.csv"], ["a.csv", "--overwrite"]),
    "the export is there": (["export", "{store}", "{tmp}/cut.h5ad"], ["cut.h5ad", "--overwrite"]),
    "no folder for the text": (["query", "{store}", "n_counts > 0", "-o", "{tmp}/no/out.csv"], ["out.csv"]),
    "no folder for the table": (["query", "{store}", "n_counts > 0", "-o", "{tmp}/no/out.parquet"], ["out.parquet"]),
    "no folder for the file": (["query", "{store}", "n_counts > 0", "-o", "{tmp}/no/out.h5ad"], ["out.h5ad"]),
    "an unknown option": (["info", "{store}", "--colour"], ["--colour"]),
    "an unknown command": (["convrt", "{store}"], ["convrt"]),
    "an argument too few": (["query", "{store}"], ["expr"]),
    "an unknown scheme": (["info", "ftp://host/a.zarr"], ["ftp", "s3"]),
    "another source": (["verify", "{store}", "--against", "{tmp}/other.h5ad"], ["a.zarr", "'X'", "row"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_is_one_line_and_status_2(run: Callable[..., Done], atlas: Atlas, tmp_path: Path, kind: str) -> None:
    (tmp_path / "text.h5ad").write_text("no HDF5\n")
    (tmp_path / "cut.h5ad").write_bytes(atlas.h5ad.read_bytes()[:20_000])
    (tmp_path / "a.csv").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    if kind == "another source":
        other = cells()
        other.X.data[5] += 1
        other.write_h5ad(tmp_path / "other.h5ad", convert_strings_to_categoricals=False)
    before = {p: p.read_bytes() for p in [*tmp_path.rglob("*"), *atlas.store.rglob("*")] if p.is_file()}
    arguments, named = FAILURES[kind]
    done = run(*(a.format(h5ad=atlas.h5ad, store=atlas.store, tmp=tmp_path) for a in arguments))

    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("lobster-zarr: ")
    for word in named:
        assert word in done.err, done.err
    after = {p: p.read_bytes() for p in [*tmp_path.rglob("*"), *atlas.store.rglob("*")] if p.is_file()}
    assert after == before, "nothing was written and nothing was lost"


def test_as_a_program_it_says_nothing_but_its_answer(atlas: Atlas, tmp_path: Path) -> None:
    done = program("convert", atlas.h5ad, tmp_path / "b.zarr", "--json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["n_obs"] == 60
    duplicates = cells()
    duplicates.var_names = ["gene"] * 20
    convert(duplicates, tmp_path / "c.zarr")
    done = program("query", tmp_path / "c.zarr", PREDICATE, "-o", tmp_path / "out.h5ad", "--json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["n_obs"] == len(atlas.rows)


def test_a_reader_that_hangs_up_is_no_failure(atlas: Atlas) -> None:
    code = "from lobster_zarr.cli import main; main()"
    command = f'"{sys.executable}" -c "{code}" info "{atlas.store}" | true'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)  # noqa: S602
    assert done.stderr == ""


def test_a_full_disk_leaves_no_output(atlas: Atlas, tmp_path: Path) -> None:
    code = "from lobster_zarr.cli import main; import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (1000, 1000)); main()"
    for name in ("out.csv", "out.zarr"):
        command = [sys.executable, "-c", code, "query", str(atlas.store), "n_counts > 0", "-o", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert "too large" in done.stderr
        assert not [p for p in tmp_path.rglob("*") if p.is_file()]
