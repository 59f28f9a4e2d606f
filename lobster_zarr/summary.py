"""Describes a store from its metadata: text for a terminal, HTML for a notebook, plain values.

Pure: needs the nodes and what the conversion noted, no request.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lobster_zarr.layout import COMPANION
from lobster_zarr.markup import Markup, bar, body, box, heading, joined, section, table
from lobster_zarr.markup import columns as columns_of
from lobster_zarr.markup import name as name_of
from lobster_zarr.report import human_bytes
from lobster_zarr.typeset import aligned, shortened, titled, wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lobster_zarr.node import ArrayNode, Tree

MAX_COLUMNS_SHOWN, MAX_ELEMENTS_SHOWN = 12, 40
MOST_OPEN = 8
"""A group of more elements is closed at first, and so are more modalities."""
INDENT, NAME_WIDTH = 7, 30


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
    member_bytes: dict[str, int] = field(default_factory=dict)
    """Encoded bytes of each element and column, and of each group of them, where the writer noted them."""

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return what it holds, line by line, in 80 columns."""
        rows = [
            (
                e.path,
                e.kind.removesuffix("_matrix") + (" + csc" if e.companion else ""),
                e.dtype,
                _shape(e.shape),
                e.codec,
                "×".join(f"{n:,}" for n in e.chunk),
                _size(e.stored_bytes),
            )
            for e in self.elements[:MAX_ELEMENTS_SHOWN]
        ]
        known = any(e.stored_bytes is not None for e in self.elements)
        heads = "element", "stored as", "dtype", "shape", "codec", "chunk", "size" if known else ""
        lines = aligned([heads, *rows], {3, 5, 6}, (0, 1, 4, 2)) if rows else []
        if len(self.elements) > MAX_ELEMENTS_SHOWN:
            lines.append(f"  … {len(self.elements) - MAX_ELEMENTS_SHOWN:,} more elements")
        for name, columns in (("obs", self.obs), ("var", self.var)):
            lines += wrapped(f"{_told(columns)}", INDENT, f"  {name}")
        return [*lines, *wrapped(_listed(self.uns), INDENT, "  uns")] if self.uns else lines

    def __str__(self) -> str:
        head = titled(f"Dataset {self.n_obs:,} × {self.n_vars:,}", self.uri)
        return "\n".join([*head, *wrapped(f"  {' · '.join(_facts(self))}", 2), *self.lines()])

    def to_html(self) -> str:
        """Return the description as HTML that fits light and dark notebooks."""
        title = f"{self.n_obs:,} cells × {self.n_vars:,} genes"
        head = heading("Dataset", title, self.uri, *_chips(self), end=_size(self.stored_bytes))
        return box(str(self), head, body(self.sections()))

    def sections(self) -> Markup:
        """Return what it holds as HTML: a section for each kind of element."""
        most = max((e.stored_bytes or 0 for e in self.elements), default=0)
        groups: dict[str, list[ElementInfo]] = {}
        for e in self.elements:
            parent = e.path.partition("/")[0]
            groups.setdefault("X" if parent in {"X", "layers", "raw"} else parent, []).append(e)
        parts = [_matrices(group, elements, most) for group, elements in groups.items()]
        parts += [_columns_html(name, cols, self.member_bytes) for name, cols in (("obs", self.obs), ("var", self.var))]
        return joined([*parts, _names_html("uns", self.uns, self.member_bytes)])


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
    member_bytes: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values."""
        return asdict(self)

    @property
    def _shared(self) -> str:
        shared = {0: "modalities share cells", 1: "modalities share genes", -1: "modalities share cells and genes"}
        return shared.get(self.axis, f"axis {self.axis}")

    def __str__(self) -> str:
        title = f"MultimodalDataset {self.n_obs:,} × {self.n_vars:,}, {len(self.modalities)} modalities"
        lines = [*titled(title, self.uri), *wrapped(f"  {' · '.join([self._shared, *_facts(self)])}", 2)]
        for name, columns in (("obs", self.obs), ("var", self.var)):
            lines += wrapped(_told(columns), INDENT, f"  {name}") if columns else []
        members = (("obsm", self.obsm), ("obsp", self.obsp), ("uns", self.uns))
        lines += [line for name, names in members if names for line in wrapped(_listed(names), INDENT, f"  {name}")]
        for name, part in self.modalities.items():
            lines += ["", f"  {shortened(name, 40)}: {part.n_obs:,} × {part.n_vars:,}", *part.lines()]
        return "\n".join(lines)

    def to_html(self) -> str:
        """Return the description as HTML that fits light and dark notebooks, a section for each modality."""
        title = f"{self.n_obs:,} cells × {self.n_vars:,} features"
        chips = f"{len(self.modalities)} modalities", self._shared, *_chips(self)
        head = heading("MultimodalDataset", title, self.uri, *chips, end=_size(self.stored_bytes))
        parts = [
            section(
                name,
                f"{part.n_obs:,} cells × {part.n_vars:,} features",
                part.sections(),
                is_open=len(self.modalities) <= MOST_OPEN,
                end=_size(part.stored_bytes or self.member_bytes.get(f"mod/{name}")),
            )
            for name, part in self.modalities.items()
        ]
        tables = (("obs", self.obs), ("var", self.var))
        parts += [_columns_html(name, columns, self.member_bytes) for name, columns in tables if columns]
        members = (("obsm", self.obsm), ("obsp", self.obsp), ("uns", self.uns))
        return box(str(self), head, body(*parts, *(_names_html(n, names, self.member_bytes) for n, names in members)))


def _facts(info: StoreInfo | MultimodalInfo) -> list[str]:
    return [*_chips(info), _size(info.stored_bytes)] if info.stored_bytes is not None else _chips(info)


def _chips(info: StoreInfo | MultimodalInfo) -> list[str]:
    return [info.writer, f"sorted by {', '.join(info.sort_by)}"] if info.sort_by else [info.writer]


def _told(columns: Mapping[str, str]) -> str:
    shown = [f"{shortened(c, NAME_WIDTH)}: {d}" for c, d in list(columns.items())[:MAX_COLUMNS_SHOWN]]
    more = f", … {len(columns) - MAX_COLUMNS_SHOWN} more" if len(columns) > MAX_COLUMNS_SHOWN else ""
    return f"{', '.join(shown) or '(no columns)'}{more}"


def _listed(names: Sequence[str]) -> str:
    more = f", … {len(names) - MAX_COLUMNS_SHOWN} more" if len(names) > MAX_COLUMNS_SHOWN else ""
    return ", ".join(shortened(name, NAME_WIDTH) for name in names[:MAX_COLUMNS_SHOWN]) + more


def _matrices(group: str, elements: Sequence[ElementInfo], most_bytes: int) -> Markup:
    """Show elements as a table, with bars of their sizes; all such tables of a store line up."""
    rows = [
        (
            name_of(e.path if group == "X" else e.path.partition("/")[2]),
            f"{e.kind} + csc" if e.companion else e.kind,
            e.dtype,
            _shape(e.shape),
            e.codec,
            " × ".join(f"{n:,}" for n in e.chunk),
            _size(e.stored_bytes),
            bar(e.stored_bytes / most_bytes) if e.stored_bytes and most_bytes else "",
        )
        for e in elements
    ]
    known = [e.stored_bytes for e in elements if e.stored_bytes is not None]
    heads = ("name", "stored as", "dtype", "shape", "codec", "chunk", "size" if known else "", "")
    parents = dict.fromkeys(e.path.partition("/")[0] for e in elements)
    return section(
        ", ".join(parents),
        f"{len(elements):,}" if group != "X" or len(elements) > 1 else "",
        table(heads, (19, 17, 9, 18, 11, 12, 9, 7), rows, {3, 5, 6}),
        is_open=len(elements) <= MOST_OPEN or group == "X",
        names=[e.path.removeprefix(f"{group}/") for e in elements],
        end=_size(sum(known)) if known else "",
    )


def _columns_html(name: str, columns: Mapping[str, str], member_bytes: Mapping[str, int]) -> Markup:
    told = [(c, kind, _size(member_bytes.get(f"{name}/{c}"))) for c, kind in columns.items()]
    note, end = f"{len(columns):,} column{'s'[: len(columns) != 1]}", _size(member_bytes.get(name))
    return section(name, note, columns_of(told), is_open=False, names=list(columns), end=end)


def _names_html(name: str, names: Sequence[str], member_bytes: Mapping[str, int]) -> Markup:
    told = [(n, "", _size(member_bytes.get(f"{name}/{n}"))) for n in names]
    end = _size(member_bytes.get(name))
    return (
        section(name, f"{len(names):,}", columns_of(told), is_open=False, names=names, end=end) if names else Markup()
    )


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(f"{n:,}" for n in shape)


def _size(n_bytes: int | None) -> str:
    return "" if n_bytes is None else human_bytes(n_bytes)


def _members(sizes: Mapping[str, int]) -> dict[str, int]:
    """Add up the sizes of arrays for each element, and for each group of elements."""
    found: dict[str, int] = {}
    for path, n_bytes in sizes.items():
        parts = path.split("/")
        for name in {"/".join(parts[:1]), "/".join(parts[:2])}:
            found[name] = found.get(name, 0) + n_bytes
    return found


def summarize(
    uri: str, tree: Tree, shape: tuple[int, int], noted: Mapping[str, Any], file_bytes: int | None = None
) -> StoreInfo:
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
    file_bytes
        Of a raw file, its size.
    """
    sizes: Mapping[str, int] = noted.get("stored_bytes", {})
    paths = [p for p in ("X", "raw/X") if p in tree]
    for parent in ("layers", "obsm", "varm", "obsp", "varp"):
        paths += [f"{parent}/{name}" for name in tree.children(parent)]
    return StoreInfo(
        uri=uri,
        n_obs=shape[0],
        n_vars=shape[1],
        writer=_writer(tree, noted, "AnnData"),
        sort_by=tuple(noted.get("sort_by", ())),
        stored_bytes=sum(sizes.values()) if sizes else file_bytes,
        elements=tuple(_element(tree, p, sizes) for p in paths),
        obs=_columns(tree, "obs"),
        var=_columns(tree, "var"),
        uns=tuple(tree.children("uns")),
        member_bytes=_members(sizes),
    )


def summarize_modalities(
    uri: str,
    tree: Tree,
    shape: tuple[int, int],
    noted: Mapping[str, Any],
    parts: dict[str, StoreInfo],
    file_bytes: int | None = None,
) -> MultimodalInfo:
    """Describe a MuData store; arguments as of `summarize`, and the description of each modality."""
    sizes: Mapping[str, int] = noted.get("stored_bytes", {})
    return MultimodalInfo(
        uri=uri,
        n_obs=shape[0],
        n_vars=shape[1],
        axis=int(tree.attributes("").get("axis", 0)),
        writer=_writer(tree, noted, "MuData"),
        sort_by=tuple(noted.get("sort_by", ())),
        stored_bytes=sum(sizes.values()) if sizes else file_bytes,
        obs=_columns(tree, "obs"),
        var=_columns(tree, "var"),
        obsm=tuple(name for name in tree.children("obsm") if name not in parts),
        obsp=tuple(tree.children("obsp")),
        uns=tuple(tree.children("uns")),
        modalities=parts,
        member_bytes=_members(sizes),
    )


def _writer(tree: Tree, noted: Mapping[str, Any], kind: str) -> str:
    found = f"{kind}, HDF5 file" if tree.container == "hdf5" else f"{kind}-Zarr, Zarr v{tree.zarr_format}"
    return str(noted.get("writer", found))


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
