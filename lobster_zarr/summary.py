"""Describes a store from its metadata: text for a terminal, HTML for a notebook, plain values.

Pure: needs the nodes and what the conversion noted, no request.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from lobster_zarr.layout import COMPANION
from lobster_zarr.report import human_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lobster_zarr.node import ArrayNode, Tree

MAX_COLUMNS_SHOWN = 12


@dataclass(frozen=True)
class ElementInfo:
    """One element of a store.

    Parameters
    ----------
    path
        From the root.
    kind
        What it is: ``csr_matrix``, ``array``, ``dataframe``, …
    shape, dtype
        Of the matrix, or of a table (rows, columns).
    chunk
        Values, or rows × columns, in the smallest piece that is read.
    codec
        Of the values.
    stored_bytes
        Encoded size, None where the writer did not note it.
    companion
        Whether a gene-major copy is stored beside it.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    codec: str
    stored_bytes: int | None
    companion: bool = False


@dataclass(frozen=True)
class StoreInfo:
    """A store at a glance."""

    uri: str
    n_obs: int
    n_vars: int
    writer: str
    sort_by: tuple[str, ...]
    stored_bytes: int | None
    elements: tuple[ElementInfo, ...]
    obs: dict[str, str]
    var: dict[str, str]
    uns: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return what it holds, line by line."""
        lines = []
        for e in self.elements:
            shape = " × ".join(f"{n:,}" for n in e.shape)
            size = f"  {human_bytes(e.stored_bytes)}" if e.stored_bytes is not None else ""
            chunk = "×".join(f"{n:,}" for n in e.chunk)
            twin = " + csc" if e.companion else ""
            lines.append(f"  {e.path:<18}{e.kind}{twin} {e.dtype} ({shape})  {e.codec}, chunks of {chunk}{size}")
        lines += [f"  {name:<18}{_told(columns)}" for name, columns in (("obs", self.obs), ("var", self.var))]
        return [*lines, f"  {'uns':<18}{', '.join(self.uns)}"] if self.uns else lines

    def __str__(self) -> str:
        head = [f"Dataset {self.n_obs:,} × {self.n_vars:,}  {self.uri}", f"  {' · '.join(_facts(self))}"]
        return "\n".join([*head, *self.lines()])

    def to_html(self) -> str:
        """Return the description as HTML that fits light and dark notebooks."""
        return (
            "<div style='font-family:system-ui,sans-serif;line-height:1.5'>"
            f"<div><b>{self.n_obs:,} cells × {self.n_vars:,} genes</b> "
            f"<code style='opacity:.75'>{escape(self.uri)}</code></div>"
            f"<div style='opacity:.65'>{escape(' · '.join(_facts(self)))}</div>{self.body()}</div>"
        )

    def body(self) -> str:
        """Return what it holds as HTML."""
        rows = "".join(
            f"<tr><td><code>{escape(e.path)}</code></td><td>{escape(e.kind)}{' + csc' if e.companion else ''}</td>"
            f"<td>{escape(e.dtype)}</td><td>{' × '.join(f'{n:,}' for n in e.shape)}</td><td>{escape(e.codec)}</td>"
            f"<td>{'×'.join(f'{n:,}' for n in e.chunk)}</td>"
            f"<td style='text-align:right'>{_size(e)}</td></tr>"
            for e in self.elements
        )
        head = "".join(
            f"<th style='text-align:left'>{h}</th>"
            for h in ("element", "stored as", "dtype", "shape", "codec", "chunk", "size")
        )
        return (
            "<table style='border-collapse:collapse;margin:.4em 0'>"
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            f"{_tables_html(self.obs, self.var)}"
            + (f"<div><b>uns</b> {escape(', '.join(self.uns))}</div>" if self.uns else "")
        )


@dataclass(frozen=True)
class MultimodalInfo:
    """A MuData store at a glance."""

    uri: str
    n_obs: int
    n_vars: int
    axis: int
    writer: str
    sort_by: tuple[str, ...]
    stored_bytes: int | None
    obs: dict[str, str]
    var: dict[str, str]
    obsm: tuple[str, ...]
    obsp: tuple[str, ...]
    uns: tuple[str, ...]
    modalities: dict[str, StoreInfo]

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values."""
        return asdict(self)

    def _facts(self) -> str:
        shared = {0: "modalities share cells", 1: "modalities share genes", -1: "modalities share cells and genes"}
        return " · ".join([shared.get(self.axis, f"axis {self.axis}"), *_facts(self)])

    def __str__(self) -> str:
        shapes = f"{self.n_obs:,} × {self.n_vars:,}, {len(self.modalities)} modalities"
        lines = [f"MultimodalDataset {shapes}  {self.uri}", f"  {self._facts()}"]
        for name, columns in (("obs", self.obs), ("var", self.var)):
            lines += [f"  {name:<18}{_told(columns)}"] if columns else []
        members = (("obsm", self.obsm), ("obsp", self.obsp), ("uns", self.uns))
        lines += [f"  {name:<18}{', '.join(names)}" for name, names in members if names]
        for name, part in self.modalities.items():
            lines.append(f"  {name}: {part.n_obs:,} × {part.n_vars:,}")
            lines += [f"  {line}" for line in part.lines()]
        return "\n".join(lines)

    def to_html(self) -> str:
        """Return the description as HTML that fits light and dark notebooks, the modalities side by side."""
        parts = "".join(
            "<div style='border:1px solid rgba(128,128,128,.35);border-radius:6px;padding:.6em .9em'>"
            f"<div><b style='font-size:1.1em'>{escape(name)}</b> "
            f"<span style='opacity:.65'>{part.n_obs:,} cells × {part.n_vars:,} features</span></div>"
            f"{part.body()}</div>"
            for name, part in self.modalities.items()
        )
        members = (("obsm", self.obsm), ("obsp", self.obsp), ("uns", self.uns))
        named = "".join(f"<div><b>{n}</b> {escape(', '.join(names))}</div>" for n, names in members if names)
        return (
            "<div style='font-family:system-ui,sans-serif;line-height:1.5'>"
            f"<div><b>{self.n_obs:,} cells × {self.n_vars:,} features in {len(self.modalities)} modalities</b> "
            f"<code style='opacity:.75'>{escape(self.uri)}</code></div>"
            f"<div style='opacity:.65'>{escape(self._facts())}</div>{_tables_html(self.obs, self.var)}{named}"
            "<div style='display:flex;flex-wrap:wrap;gap:.8em;margin-top:.6em;align-items:flex-start'>"
            f"{parts}</div></div>"
        )


def _facts(info: StoreInfo | MultimodalInfo) -> list[str]:
    facts = [info.writer]
    if info.sort_by:
        facts.append(f"sorted by {', '.join(info.sort_by)}")
    if info.stored_bytes is not None:
        facts.append(human_bytes(info.stored_bytes))
    return facts


def _told(columns: Mapping[str, str]) -> str:
    shown = [f"{c}: {d}" for c, d in list(columns.items())[:MAX_COLUMNS_SHOWN]]
    more = f", … {len(columns) - MAX_COLUMNS_SHOWN} more" if len(columns) > MAX_COLUMNS_SHOWN else ""
    return f"{', '.join(shown) or '(no columns)'}{more}"


def _tables_html(obs: Mapping[str, str], var: Mapping[str, str]) -> str:
    return "".join(
        f"<details><summary><b>{name}</b> {len(columns)} columns</summary>"
        + "".join(
            f"<div><code>{escape(c)}</code> <span style='opacity:.65'>{escape(d)}</span></div>"
            for c, d in columns.items()
        )
        + "</details>"
        for name, columns in (("obs", obs), ("var", var))
    )


def _size(element: ElementInfo) -> str:
    return "" if element.stored_bytes is None else human_bytes(element.stored_bytes)


def summarize(uri: str, tree: Tree, shape: tuple[int, int], noted: Mapping[str, Any]) -> StoreInfo:
    """Describe a store.

    Parameters
    ----------
    uri
        For display.
    tree
        Its nodes.
    shape
        Cells and genes.
    noted
        What the conversion noted in the root attributes.
    """
    sizes: Mapping[str, int] = noted.get("stored_bytes", {})
    paths = [p for p in ("X", "raw/X") if p in tree]
    for parent in ("layers", "obsm", "varm", "obsp", "varp"):
        paths += [f"{parent}/{name}" for name in tree.children(parent)]
    return StoreInfo(
        uri=uri,
        n_obs=shape[0],
        n_vars=shape[1],
        writer=str(noted.get("writer", f"AnnData-Zarr, Zarr v{tree.zarr_format}")),
        sort_by=tuple(noted.get("sort_by", ())),
        stored_bytes=sum(sizes.values()) if sizes else None,
        elements=tuple(_element(tree, p, sizes) for p in paths),
        obs=_columns(tree, "obs"),
        var=_columns(tree, "var"),
        uns=tuple(tree.children("uns")),
    )


def summarize_modalities(
    uri: str, tree: Tree, shape: tuple[int, int], noted: Mapping[str, Any], parts: dict[str, StoreInfo]
) -> MultimodalInfo:
    """Describe a MuData store; arguments as of `summarize`, and the description of each modality."""
    sizes: Mapping[str, int] = noted.get("stored_bytes", {})
    return MultimodalInfo(
        uri=uri,
        n_obs=shape[0],
        n_vars=shape[1],
        axis=int(tree.attributes("").get("axis", 0)),
        writer=str(noted.get("writer", f"MuData-Zarr, Zarr v{tree.zarr_format}")),
        sort_by=tuple(noted.get("sort_by", ())),
        stored_bytes=sum(sizes.values()) if sizes else None,
        obs=_columns(tree, "obs"),
        var=_columns(tree, "var"),
        obsm=tuple(name for name in tree.children("obsm") if name not in parts),
        obsp=tuple(tree.children("obsp")),
        uns=tuple(tree.children("uns")),
        modalities=parts,
    )


def _element(tree: Tree, path: str, sizes: Mapping[str, int]) -> ElementInfo:
    kind = tree.encoding(path) or "array"
    own = [s for p, s in sizes.items() if p == path or p.startswith(f"{path}/")]
    stored = sum(own) if own else None
    companion = f"{path}/{COMPANION}" in tree
    if tree.is_array(path) or tree.is_array(f"{path}/data"):
        node = tree.array(path if tree.is_array(path) else f"{path}/data")
        shape = node.shape if tree.is_array(path) else tuple(int(n) for n in tree.attributes(path).get("shape", ()))
        return ElementInfo(path, kind, shape, node.dtype.name, node.grid.chunk, codec_name(node), stored, companion)
    return ElementInfo(path, kind, (), "", (), "", stored)


def codec_name(node: ArrayNode) -> str:
    """Return the codec of an array as people say it: ``pcodec``, ``blosc-zstd``, …."""
    names = []
    for codec in node.codec_documents():
        name = str(codec.get("name", codec.get("id", ""))).removeprefix("numcodecs.")
        configuration = codec.get("configuration", codec)
        names.append(f"{name}-{configuration['cname']}" if "cname" in configuration else name)
    told = [n for n in names if n not in {"bytes", "crc32c", "vlen-utf8"}]
    return "+".join(told) or "none"


def _columns(tree: Tree, path: str) -> dict[str, str]:
    return {str(c): _column_dtype(tree, f"{path}/{c}") for c in tree.attributes(path).get("column-order", ())}


def _column_dtype(tree: Tree, path: str) -> str:
    match tree.encoding(path):
        case "categorical" if tree.is_array(f"{path}/categories"):
            return f"category ({tree.array(f'{path}/categories').shape[0]:,})"
        case "nullable-integer" | "nullable-boolean" if tree.is_array(f"{path}/values"):
            return f"{tree.array(f'{path}/values').dtype.name}?"
        case "string-array" | "nullable-string-array":
            return "string"
    if not tree.is_array(path):
        return tree.encoding(path)
    dtype = tree.array(path).dtype
    return "string" if dtype.kind in "OTU" else dtype.name
