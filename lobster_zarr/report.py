"""What a conversion or a verification tells while it runs and when it is done.

Progress bars on a terminal, nothing elsewhere; and the reports. Must not know
how anything is converted or verified.
"""

from __future__ import annotations

import resource
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lobster_zarr.errors import InvalidArgumentError
from lobster_zarr.markup import bar, body, box, columns, facts, figures, heading, name, section, table
from lobster_zarr.typeset import WIDTH, human_seconds, printable, shortened, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import rich.progress

    from lobster_zarr.traffic import Stats

    Advance = Callable[[int], None]

NAME_WIDTH = 26
PATIENCE_SECONDS = 1.0
"""What is read sooner shows no bar."""


def human_bytes(n_bytes: float) -> str:
    """Return a size with a decimal unit: ``12.6 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def positive(number: int, name: str) -> int:
    """Return a whole number above zero.

    Raises
    ------
    InvalidArgumentError
        It is not one; `name` is the argument's.
    """
    if isinstance(number, bool) or not isinstance(cast("object", number), int) or number < 1:
        msg = f"{name} is {number!r}; expected a whole number above zero."
        raise InvalidArgumentError(msg)
    return number


def parse_size(size: int | str, name: str) -> int:
    """Return bytes from a number or text such as ``"2GB"``.

    Raises
    ------
    InvalidArgumentError
        It is neither, or not above zero; `name` is the argument's.
    """
    from dask.utils import parse_bytes

    try:
        n_bytes = int(parse_bytes(size))
    except (ValueError, TypeError, AttributeError):
        n_bytes = 0
    if n_bytes <= 0:
        msg = f"{name} {size!r} is not a size; expected bytes or text such as '2GB'."
        raise InvalidArgumentError(msg)
    return n_bytes


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held, as the system counts it."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss is never less than what the parent held
        peaks = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if peaks:
            return int(peaks[0].split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Parameters
    ----------
    source, destination
        Where from and where to.
    n_obs, n_vars
        Shape.
    source_bytes
        Size of the source file; None where it has none.
    stored_bytes, n_objects
        Bytes and objects of the store, metadata included.
    seconds
        Wall time.
    peak_memory_bytes
        Most memory the process held, since it started.
    codec, sort_by, gene_major
        How it is stored.
    replaced
        What the destination held before, or an empty string.
    arrays
        Encoded bytes by array path.
    modalities
        Cells and genes of each modality of a MuData, by its name; empty of an AnnData.
    """

    source: str
    destination: str
    n_obs: int
    n_vars: int
    source_bytes: int | None
    stored_bytes: int
    n_objects: int
    seconds: float
    peak_memory_bytes: int
    codec: str
    sort_by: tuple[str, ...]
    gene_major: tuple[str, ...]
    replaced: str = ""
    arrays: dict[str, int] = field(default_factory=dict)
    modalities: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Stored bytes as a part of the source's."""
        return self.stored_bytes / self.source_bytes if self.source_bytes else None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {**asdict(self), "ratio": self.ratio}

    def __str__(self) -> str:
        made = f"  {self.n_obs:,} cells × {self.n_vars:,} genes, codec {self.codec}"
        made += f", sorted by {', '.join(self.sort_by)}" if self.sort_by else ""
        made += f", gene-major {', '.join(self.gene_major)}" if self.gene_major else ""
        shapes = self.modalities.items()
        lines = [
            *_from_to(self.source, self.destination),
            *wrapped(made, 4),
            *(f"  {shortened(name, 40)}: {n_obs:,} × {n_vars:,}" for name, (n_obs, n_vars) in shapes),
            f"  {human_bytes(self.stored_bytes)} in {self.n_objects:,} objects"
            + (f", {self.ratio:.2f}× of {human_bytes(self.source_bytes or 0)}" if self.ratio else ""),
            f"  {self.seconds:.1f} s, peak memory {human_bytes(self.peak_memory_bytes)}",
        ]
        if self.replaced:
            lines.append(f"  replaced {self.replaced} at the destination")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        ratio = f"{self.ratio:.2f}× of {human_bytes(self.source_bytes or 0)}" if self.ratio else "stored"
        told = figures(
            (human_bytes(self.stored_bytes), ratio),
            (f"{self.n_objects:,}", "objects"),
            (human_seconds(self.seconds), "wall time"),
            (human_bytes(self.peak_memory_bytes), "peak memory"),
        )
        most = max(self.arrays.values(), default=0) or 1
        ranked = sorted(self.arrays.items(), key=lambda pair: -pair[1])
        rows = [(name(path), human_bytes(n), bar(n / most)) for path, n in ranked]
        parts = [facts(("source", self.source), *((("replaced", self.replaced),) if self.replaced else ()))]
        if self.modalities:
            shapes = [(modality, f"{n_obs:,} × {n_vars:,}") for modality, (n_obs, n_vars) in self.modalities.items()]
            parts.append(section("modalities", f"{len(shapes)}", facts(*shapes), is_open=True))
        if rows:
            made = table(("array", "size", ""), (45, 12, 43), rows, {1})
            parts.append(section("arrays", f"{len(rows):,}", made, is_open=False, names=[path for path, _ in ranked]))
        chips = [f"codec {self.codec}"] + [f"sorted by {', '.join(self.sort_by)}"] * bool(self.sort_by)
        chips += [f"gene-major {', '.join(self.gene_major)}"] * bool(self.gene_major)
        title = f"{self.n_obs:,} cells × {self.n_vars:,} genes"
        return box(str(self), heading("Converted", title, self.destination, *chips), told, body(*parts))


@dataclass(frozen=True)
class VerificationReport:
    """What a verification read and found to be right.

    Parameters
    ----------
    uri
        The store.
    n_arrays, n_bytes
        Arrays and encoded bytes that were read.
    compared
        Elements found equal to the source; empty without one.
    seconds
        Wall time.
    """

    uri: str
    n_arrays: int
    n_bytes: int
    compared: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        read = f"  {self.n_arrays:,} arrays, {human_bytes(self.n_bytes)} read"
        against = f", {len(self.compared):,} elements equal to the source" if self.compared else ""
        return f"{shortened(self.uri, WIDTH - 9)} is sound\n{read}{against}, {human_seconds(self.seconds)}"

    def _repr_html_(self) -> str:
        told = figures(
            (f"{self.n_arrays:,}", "arrays read"),
            (human_bytes(self.n_bytes), "read and checked"),
            (f"{len(self.compared):,}" if self.compared else "none", "elements equal to the source"),
            (human_seconds(self.seconds), "wall time"),
        )
        names = columns([(path, "", "") for path in self.compared])
        parts = [section("compared", f"{len(self.compared):,}", names, is_open=False, names=self.compared)]
        return box(str(self), heading("Verified", "sound", self.uri), told, *([body(*parts)] if self.compared else []))


def _from_to(source: str, destination: str) -> list[str]:
    told = printable(f"{source} → {destination}")
    if len(told) <= WIDTH:
        return [told]
    return [shortened(source, WIDTH), f"  → {shortened(destination, WIDTH - 4)}"]


class Progress:
    """One bar a phase, with rate and time left; silent when nobody looks: neither a terminal nor a notebook."""

    def __init__(self, *, enabled: bool, label: str = "") -> None:
        self.enabled, self.label = enabled and (sys.stderr.isatty() or _draws_in_notebook()), label

    def of(self, part: str) -> Progress:
        """Return the same for a part of the work, whose name its bars begin with."""
        return Progress(enabled=self.enabled, label=f"{part}: ")

    @contextmanager
    def phase(self, name: str, total: int, unit: str = "values") -> Iterator[Advance]:
        """Show a phase; the body calls what it is given with each advance."""
        if not self.enabled or total == 0:
            yield lambda _: None
            return
        with _bars(transient=False) as bars:
            task = bars.add_task(shortened(f"{self.label}{name}", NAME_WIDTH), total=total, rate="")

            def advance(amount: int) -> None:
                speed = bars.tasks[task].speed
                rate = f"{speed / 1e6:.1f} M {unit}/s" if speed else ""
                bars.update(task, advance=amount, rate=rate)

            yield advance

    def tell(self, text: str) -> None:
        """Print a line above the bars that follow."""
        if self.enabled:
            sys.stderr.write(f"{printable(text)}\n")

    @contextmanager
    def watching(self, name: str, stats: Stats) -> Iterator[None]:
        """Show the bytes that arrive while the body runs, once that has taken a while; nothing of it stays.

        Parameters
        ----------
        name
            Of what is being done.
        stats
            Counts what arrives.
        """
        if not self.enabled:
            yield
            return
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(name, stats, ended), daemon=True)
        watch.start()
        try:
            yield
        finally:
            ended.set()
            watch.join()


def _watch(name: str, stats: Stats, ended: threading.Event) -> None:
    begun, arrived = stats.begun_bytes, stats.n_bytes
    if ended.wait(PATIENCE_SECONDS):
        return
    with _bars(transient=True) as bars:
        task = bars.add_task(name, total=None, rate="")
        waiting = True
        while waiting:
            read = stats.n_bytes - arrived
            total = max(stats.begun_bytes - begun, read) or None
            speed = bars.tasks[task].speed
            rate = human_bytes(read) + (f", {human_bytes(speed)}/s" if speed else "")
            bars.update(task, completed=read, total=total, rate=rate)
            waiting = not ended.wait(0.1)


def _draws_in_notebook() -> bool:
    """Whether this is a notebook in which bars can be drawn."""
    return "ipykernel" in sys.modules and find_spec("ipywidgets") is not None


def _bars(*, transient: bool) -> rich.progress.Progress:
    """Return bars that fit 80 columns."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(f"{{task.description:<{NAME_WIDTH}}}", markup=False),  # it may be a name of a store's
        BarColumn(bar_width=14),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=transient)
