"""Writes one page with every HTML representation, on white and on dark, to be looked at in a browser.

    python -m tests.gallery OUT_FOLDER [STORE_OR_FILE ...]

Nothing of it is asserted: that is tests/test_looks.py. A screenshot of the page, 900 pixels wide:

    chromium --headless --no-sandbox --disable-gpu --window-size=980,4000 --screenshot=light.png OUT_FOLDER/light.html

Those in docs/pictures are of picture-light.html and picture-dark.html, 916 pixels wide, and plot.svg.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pandas as pd
from scipy import sparse

import lobster_zarr as lz
from lobster_zarr.doctor import repair

# What surrounds an output: a plain page, and JupyterLab's rules for rendered HTML and its variables.
JUPYTER = """
.jp-RenderedHTMLCommon{color:var(--jp-content-font-color1);font-family:system-ui;font-size:14px;line-height:1.6;
padding-right:20px}
.jp-RenderedHTMLCommon pre,.jp-RenderedHTMLCommon code{border:0;background-color:var(--jp-layout-color0);padding:0}
.jp-RenderedHTMLCommon table{border-collapse:collapse;border-spacing:0;border:none;color:var(--jp-ui-font-color1);
font-size:12px;table-layout:fixed;margin-left:auto;margin-bottom:1em;margin-right:auto}
.jp-RenderedHTMLCommon thead{border-bottom:1px solid var(--jp-border-color1);vertical-align:bottom}
.jp-RenderedHTMLCommon td,.jp-RenderedHTMLCommon th,.jp-RenderedHTMLCommon tr{vertical-align:middle;padding:.5em;
line-height:normal;white-space:normal;max-width:none;border:none}
:not(.jp-RenderedMarkdown).jp-RenderedHTMLCommon td,:not(.jp-RenderedMarkdown).jp-RenderedHTMLCommon th{
text-align:right}
.jp-RenderedHTMLCommon tbody tr:nth-child(odd){background:var(--jp-layout-color2)}
"""
THEMES = {
    "light": "<body style='background:#fff;color:#111'>",
    "dark": "<body style='background:#111;color:#e8e8e8;color-scheme:dark'>",
    "jupyterlab-light": "<body data-jp-theme-light='true' style='background:#fff;"
    "--jp-content-font-color1:rgba(0,0,0,.87);"
    "--jp-ui-font-color1:rgba(0,0,0,.87);--jp-layout-color0:#fff;--jp-layout-color2:#eee;--jp-brand-color1:#1976d2;"
    "--jp-border-color1:#bdbdbd'>",
    "jupyterlab-dark": "<body data-jp-theme-light='false' style='background:#111;--jp-content-font-color1:#fff;"
    "--jp-ui-font-color1:rgba(255,255,255,.87);--jp-layout-color0:#111;--jp-layout-color2:#424242;"
    "--jp-brand-color1:#2196f3;--jp-border-color1:#616161'>",
    "vscode-dark": "<body class='vscode-dark' style='background:#1f1f1f;color:#ccc;--vscode-editor-foreground:#ccc;"
    "--vscode-charts-blue:#59a4f9;--vscode-charts-orange:#d18616;--vscode-charts-green:#89d185'>",
}


def atlas(n_obs: int = 30_000, n_vars: int = 2_000) -> ad.AnnData:
    """Cells with skewed types, many columns, layers and embeddings."""
    rng = np.random.default_rng(0)
    types = ["B cell", "CD14 monocyte", "CD4 T cell", "CD8 T cell", "NK", "dendritic cell", "platelet"]
    counts = sparse.random(n_obs, n_vars, 0.04, "csr", dtype="float32", random_state=1)
    counts.data = rng.poisson(2, counts.nnz).astype("float32") + 1
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(types, n_obs, p=[0.13, 0.2, 0.3, 0.17, 0.1, 0.07, 0.03])),
            "donor": pd.Categorical(rng.choice([f"donor-{i}" for i in range(8)], n_obs)),
            "n_counts": rng.integers(200, 9_000, n_obs),
            "pct_mito": rng.random(n_obs).astype("float32"),
            "doublet": pd.array(rng.choice([True, False, None], n_obs), dtype="boolean"),
        },
        index=[f"cell-{i}" for i in range(n_obs)],
    )
    var = pd.DataFrame({"highly_variable": rng.random(n_vars) < 0.3}, index=[f"gene-{i}" for i in range(n_vars)])
    obsm = {"X_pca": rng.normal(size=(n_obs, 50)).astype("float32"), "X_umap": rng.normal(size=(n_obs, 2))}
    return ad.AnnData(counts, obs, var, obsm=obsm, layers={"counts": counts}, uns={"title": "atlas", "neighbors": {}})


def crowded() -> ad.AnnData:
    """60 columns of obs, 300 layers, long and hostile names."""
    rng = np.random.default_rng(1)
    n_obs, n_vars = 300, 40
    obs = pd.DataFrame({f"score_of_signature_number_{i}": rng.random(n_obs) for i in range(60)})
    obs.index = [f"cell-{i}" for i in range(n_obs)]
    obs['<img src=x onerror=alert(1)> & "q"'] = 1
    made = ad.AnnData(sparse.csr_matrix(rng.poisson(0.4, (n_obs, n_vars)).astype("float32")), obs=obs)
    made.layers = {f"imputed_by_model_{i}_with_a_long_name_of_its_own": made.X for i in range(300)}
    return made


def pieces(folder: Path, others: list[str]) -> list[tuple[str, object]]:
    """Everything that has a representation."""
    made = atlas()
    plain, ours = folder / "plain.zarr", folder / "atlas.zarr"
    made.write_zarr(plain)
    report = lz.convert(made, ours, sort_by=["cell_type", "donor"], overwrite=True, progress=False)
    made.write_h5ad(folder / "atlas.h5ad", compression="gzip")
    lz.convert(crowded(), folder / "crowded.zarr", overwrite=True, progress=False)
    empty = ad.AnnData(obs=pd.DataFrame(index=[]), var=pd.DataFrame(index=[]))
    lz.convert(empty, folder / "empty.zarr", overwrite=True, progress=False)
    proteins = ad.AnnData(np.ones((20_000, 30), "float32"), obs=pd.DataFrame(index=made.obs_names[:20_000]))
    proteins.var_names = [f"protein-{i}" for i in range(30)]
    both = mudata.MuData({"rna": made, "prot": proteins})
    lz.convert(both, folder / "cite.zarr", sort_by="rna:cell_type", overwrite=True, progress=False)
    data, cite = lz.open(ours), lz.open(folder / "cite.zarr")
    asked = data.query("cell_type == 'NK' and n_counts > 500", ["gene-3", "gene-7", "gene-44"])
    yet = data.query({"cell_type": ["NK", "B cell"]}, made.var_names[:60].tolist(), layers=[], max_bytes="1GB")
    joint = cite.query("rna:cell_type == 'NK'", modalities=["rna", "prot"])
    before = repr(yet)
    shown: list[tuple[str, object]] = [("Dataset", data), ("Selection, unread", yet), ("QueryPlan", asked.explain())]
    shown += [(before[:60], data.query("n_counts < 400").explain()), ("Selection, planned", asked)]
    shown += [("no match", data.query("cell_type == 'NKT'"))]
    shown[-1][1].count()  # type: ignore[attr-defined]
    shown += [("MultimodalDataset", cite), ("its plan", joint.explain()), ("its selection", joint)]
    shown += [("Diagnosis", lz.doctor(plain)), ("healthy", lz.doctor(ours)), ("ConversionReport", report)]
    shown += [
        ("VerificationReport", lz.verify(ours, made, progress=False)),
        ("crowded", lz.open(folder / "crowded.zarr")),
    ]
    shown += [
        ("its plan", lz.open(folder / "crowded.zarr").query([3, 4]).explain()),
        ("empty", lz.open(folder / "empty.zarr")),
    ]
    shown += [("IndexReport", lz.index(folder / "atlas.h5ad")), ("a raw file", lz.open(folder / "atlas.h5ad"))]
    shown += [("its plan", lz.open(folder / "atlas.h5ad").query("cell_type == 'NK'", ["gene-3"]).explain())]
    shown += [("Repair", repair(lz.doctor(plain), folder / f"repaired-{len(list(folder.iterdir()))}.zarr"))]
    return shown + [(uri, lz.open(uri)) for uri in others]


def main() -> None:
    """Write the pages."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    shown = pieces(folder, sys.argv[2:])
    for name, body in THEMES.items():
        outputs = "".join(
            f"<h4 style='font:12px monospace;opacity:.6;margin:18px 0 2px'>{title.replace('<', '')}</h4>"
            f"<div class='{'jp-RenderedHTMLCommon' if 'jupyter' in name else ''}'>{value._repr_html_()}</div>"  # type: ignore[attr-defined]
            for title, value in shown
        )
        page = f"<!doctype html><meta charset='utf-8'><style>{JUPYTER}</style>{body}<div style='width:900px'>{outputs}"
        (folder / f"{name}.html").write_text(page)
    pictured = "".join(shown[at][1]._repr_html_() for at in (0, 2))  # type: ignore[attr-defined]
    for name in ("light", "dark"):
        page = f"{THEMES[name]}<div style='width:900px'>{pictured.replace(str(folder), 's3://lab')}"
        (folder / f"picture-{name}.html").write_text(f"<!doctype html><meta charset='utf-8'>{page}")
    plan = shown[2][1]
    plan.plot().figure.savefig(folder / "plot.svg")  # type: ignore[attr-defined]
    for title, value in shown:
        print(f"--- {title}\n{value}\n")


if __name__ == "__main__":
    main()
