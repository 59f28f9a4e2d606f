"""The shape of the package: rings, sizes, names, exports and what importing it costs.

Reads the source with `ast` and never runs it, save for the two tests that import the package.
A new module is added to RINGS; an export is added to EXPORTS: both are changed on purpose or not at all.
"""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "lobster_zarr"
ROOT = Path(__file__).parents[1] / PACKAGE
MAX_LINES = 400
VAGUE = {"utils", "util", "helpers", "common", "core", "manager", "misc"}

# A module imports modules of rings above its own (a smaller number), and of its own ring as long as
# no circle comes of it. Imports inside functions and under TYPE_CHECKING count too.
RINGS: dict[int, set[str]] = {
    0: {"errors"},
    1: {"selection", "grid", "byterange", "epoch", "obsmap", "typeset"},  # pure arithmetic
    2: {
        "noted",
        "zones",
        "node",
        "layout",
        "predicate",
        "_clause",
        "_feature",
        "_python",
        "_sql",
        "_source",
        "checksum",
        "markup",
    },  # pure model
    3: {
        "plan",
        "touched",
        "h5format",
        "h5array",
        "h5filter",
        "h5image",
    },  # pure planning, and what HDF5 files are made of
    4: {
        "agent",
        "address",
        "location",
        "credentials",
        "redact",
        "placement",
        "regions",
        "connection",
        "refusal",
        "loop",
        "place",
        "s3client",
        "wholefile",
        "store",
        "tree",
        "cache",
        "traffic",
        "decode",
        "fetch",
        "identity",
        "inventory",
        "sidecar",
        "h5store",
        "h5tree",
        "h5fetch",
    },  # talks to a network
    5: {
        "table",
        "joined",
        "sparse",
        "dense",
        "element",
        "whole",
        "h5whole",
        "h5legacy",
        "h5node",
    },  # one AnnData element each
    6: {
        "report",
        "summary",
        "query",
        "selected",
        "piecewise",
        "reading",
        "blocks",
        "costs",
        "loader",
        "resolve",
        "features",
        "sql",
        "projection",
        "explain",
        "dataset",
        "multimodal",
        "openstore",
        "muquery",
        "mureading",
        "muresolve",
        "muprojection",
        "mulazy",
        "lazy",
        "lazymatrix",
        "lazytable",
        "export",
        "verify",
        "audit",
        "reopen",
        "h5index",
        "assemble",
        "recipe",
        "moments",
        "reduction",
        "client",
        "aggregate",
        "xarrays",
        "fingerprint",
        "packing",
    }
    | {"doctor", "diagnosis", "symptoms", "prediction", "blueprint", "packed"}  # what a caller holds
    | {
        "convert",
        "conversion",
        "muconvert",
        "musource",
        "muverify",
        "verification",
        "muexport",
        "h5ad",
        "matrices",
        "source",
        "stream",
        "scratch",
        "stage",
        "write",
        "commit",
    }
    | {"transfer", "listing", "removal"}  # whole files
    | {"migration", "folder", "passage", "replica", "manifest"}
    | {"cluster", "workplace", "partition", "pieces", "tasks"},  # and the rooms of a conversion
    7: {"__init__", "__main__", "cli", "cli_options", "cli_migrate", "output", "demo", "bucket", "lobster"}
    | {"backends", "backend", "kinds", "rooted", "documented", "datafile", "facts", "answer", "workspace"}  # edges
    | {"lobster_adapter", "lobster_files", "lobster_record", "lobster_workspace"},  # rooms of the Lobster AI plug-in
}
RING_OF = {module: ring for ring, modules in RINGS.items() for module in modules}

EXPORTS = [
    "ConversionReport",
    "Dataset",
    "Diagnosis",
    "IndexReport",
    "MigrationReport",
    "MultimodalDataset",
    "MultimodalSelection",
    "Network",
    "Selection",
    "convert",
    "doctor",
    "errors",
    "export",
    "index",
    "migrate",
    "open",
    "verify",
]

# Slow or optional: `import lobster_zarr` leaves them to the function that needs them.
# anndata alone takes a second, and brings dask, h5py, pandas and xarray.
LAZY = [
    "anndata",
    "awkward",
    "boto3",
    "dask",
    "distributed",
    "h5py",
    "lobster",
    "matplotlib",
    "moto",
    "mudata",
    "scanpy",
    "torch",
    "xarray",
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported_modules(tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of the package that a source imports; the package itself counts as ``__init__``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # The package is flat: one dot is the package.
            base = ".".join(filter(None, [PACKAGE if node.level else "", node.module]))
            own = {alias.name for alias in node.names if base == PACKAGE and alias.name in known}
            names = [f"{base}.{name}" for name in own]
            names += [base] if len(own) < len(node.names) else []
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            if head == PACKAGE:
                found.add(rest.partition(".")[0] or "__init__")
    return found


def upward_edges(edges: dict[str, set[str]]) -> list[str]:
    """Edges against the rings; a module without a ring is another test's failure."""
    return [
        f"{module} (ring {RING_OF[module]}) imports {target} (ring {RING_OF[target]})"
        for module, targets in sorted(edges.items())
        for target in sorted(targets)
        if RING_OF.get(target, 0) > RING_OF.get(module, max(RINGS))
    ]


@pytest.fixture(scope="module")
def edges() -> dict[str, set[str]]:
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}
    return {name: imported_modules(tree, set(SOURCES)) for name, tree in trees.items()}


def test_every_module_has_a_ring():
    homeless = sorted(set(SOURCES) - set(RING_OF))
    assert not homeless, f"no ring for {homeless}: decide what they may know and add them to RINGS"


def test_imports_run_one_way(edges):
    assert not upward_edges(edges)


def test_imports_make_no_circle(edges):
    try:
        tuple(graphlib.TopologicalSorter(edges).static_order())
    except graphlib.CycleError as error:
        pytest.fail("import circle: " + " -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import lobster_zarr.plan", {"plan"}),
        ("from lobster_zarr.plan import Plan", {"plan"}),
        ("from lobster_zarr import plan, errors", {"plan", "errors"}),
        ("from .plan import Plan", {"plan"}),
        ("from . import plan", {"plan"}),
        ("import lobster_zarr as lz", {"__init__"}),
        ("from lobster_zarr import open, plan", {"__init__", "plan"}),
        ("def f():\n    from lobster_zarr import cli", {"cli"}),
        ("if TYPE_CHECKING:\n    from lobster_zarr.cli import app", {"cli"}),
        ("import zarr, lobster_zarr_other", set()),
    ],
)
def test_every_form_of_import_is_seen(source, expected):
    assert imported_modules(ast.parse(source), {"plan", "errors", "cli"}) == expected


def test_an_upward_edge_is_reported():
    assert upward_edges({"plan": {"errors", "cli"}}) == ["plan (ring 3) imports cli (ring 7)"]


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_is_a_noun_and_fits_its_room(module):
    n_lines = len(SOURCES[module].read_text(encoding="utf-8").splitlines())
    assert module.lstrip("_") not in VAGUE, f"{module} says nothing: name it after what it knows"
    assert n_lines <= MAX_LINES, f"{module} has {n_lines} lines, expected at most {MAX_LINES}: split it"


@pytest.mark.parametrize("module", SOURCES)
def test_no_text_is_run_as_code(module):
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called.rpartition(".")[2] not in {"eval", "exec"}, f"{module}:{node.lineno} {called}()"
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        else:
            continue
        assert not names & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}, f"{module}:{node.lineno}"


def run_python(code: str) -> list[str]:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, check=False, cwd=ROOT.parent, text=True)
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout)
    return names


def test_exports():
    exports = run_python(f"import json, {PACKAGE} as p; print(json.dumps(list(p.__all__)))")
    assert exports == sorted(exports)
    assert exports == EXPORTS


def test_every_export_is_there():
    missing = "[n for n in p.__all__ if not hasattr(p, n)]"
    assert run_python(f"import json, {PACKAGE} as p; print(json.dumps({missing}))") == []


def test_importing_the_package_is_cheap():
    loaded = f"[n for n in {LAZY} if n in sys.modules]"
    assert run_python(f"import json, sys, {PACKAGE}; print(json.dumps({loaded}))") == []
