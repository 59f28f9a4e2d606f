"""What the doctor found: findings, predictions, the remedy, as text of 80 columns, HTML and plain values.

Must not know how any of it was found.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lobster_zarr.markup import bar, body, box, facts, heading, joined, section, table, tag
from lobster_zarr.report import human_bytes
from lobster_zarr.typeset import WIDTH, human_seconds, shortened, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lobster_zarr.markup import Markup
    from lobster_zarr.prediction import Cost
    from lobster_zarr.report import ConversionReport

NAME_WIDTH = 28
MOST_OPEN = 6
"""More findings are closed at first."""
HEALTHY = "nothing to repair"


@dataclass(frozen=True)
class Finding:
    """One thing that makes queries slow.

    Parameters
    ----------
    kind
        For programs: ``"one-chunk"``, ``"unsorted"``, …; docs/doctor.md lists them.
    element
        Where: ``X``, ``obs/cell_type``, ``mod/rna/X``; ``store`` for the whole.
    problem
        What is wrong.
    cost
        What that costs.
    remedy
        What to do.
    curable
        Whether a conversion repairs it.
    """

    kind: str
    element: str
    problem: str
    cost: str
    remedy: str
    curable: bool = True


@dataclass(frozen=True)
class Prediction:
    """What a typical query costs now, and after the conversion that is proposed.

    Parameters
    ----------
    query
        What is asked.
    modality
        Of a MuData; empty otherwise.
    now
        On the store as it is.
    after
        Once it is converted; None where no conversion is proposed.
    """

    query: str
    modality: str
    now: Cost | None
    after: Cost | None


@dataclass(frozen=True)
class Diagnosis:
    """What in the layout of a store makes queries slow, what that costs, and the remedy. Made by ``doctor()``.

    Parameters
    ----------
    uri
        The store or file.
    n_obs, n_vars
        Its shape; None where it cannot be read.
    findings
        What is wrong; empty of a healthy store.
    predictions
        Typical queries, each from cold on an open store.
    destination
        Where the proposed conversion would write.
    options
        Its options, as `lobster_zarr.convert` takes them; None where none is proposed.
    assumptions
        What the predictions rest on.
    endpoint_url
        That was passed; for the command.
    unpacked
        What the file is called once it is unpacked; empty of anything else.
    """

    uri: str
    n_obs: int | None
    n_vars: int | None
    findings: tuple[Finding, ...]
    predictions: tuple[Prediction, ...] = ()
    destination: str = ""
    options: Mapping[str, Any] | None = None
    assumptions: tuple[str, ...] = ()
    endpoint_url: str | None = None
    unpacked: str = field(default="", repr=False)

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def arguments(self) -> list[str]:
        """The command line of the conversion that is proposed, word by word; empty where none is."""
        return self.arguments_for(self.destination)

    def arguments_for(self, destination: str) -> list[str]:
        """Return the command line that writes to another place."""
        if self.options is None:
            return []
        words = ["lobster-zarr", "convert", self.unpacked or self.uri, destination]
        for column in self.options.get("sort_by", ()):
            words += ["--sort-by", column]
        words += ["--gene-major"] if self.options.get("gene_major") is True else []
        if "codec" in self.options:
            words += ["--codec", self.options["codec"]]
        return words + (["--endpoint-url", self.endpoint_url] if self.endpoint_url else [])

    @property
    def command(self) -> str:
        """The same as text that a shell takes; empty where none is proposed."""
        return shlex.join(self.arguments)

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain values."""
        kept = {k: v for k, v in asdict(self).items() if k not in {"unpacked", "endpoint_url", "options"}}
        options = None if self.options is None else dict(self.options)
        return {**kept, "options": options, "healthy": self.healthy, "command": self.command}

    @property
    def _verdict(self) -> str:
        return HEALTHY if self.healthy else f"{len(self.findings)} finding{'s'[: len(self.findings) > 1]}"

    def _title(self) -> str:
        shape = "" if self.n_obs is None else f" ({self.n_obs:,} × {self.n_vars or 0:,})"
        told = f"{shape}: {self._verdict}"
        return f"{shortened(self.uri, WIDTH - len(told))}{told}"

    def __str__(self) -> str:
        lines = [self._title()]
        for number, finding in enumerate(self.findings, 1):
            lines += ["", *wrapped(f"{number}. {finding.element}: {finding.problem}", 3)]
            lines += wrapped(f"   Cost: {finding.cost}", 9) + wrapped(f"   Do: {finding.remedy}", 7)
        if self.predictions:
            lines += ["", *self._table()]
        if self.options is not None:
            head = "Then:" if self.unpacked else "Remedy:"
            lines += ["", head, *_command(self.arguments)]
        for assumption in self.assumptions:
            lines += wrapped(f"  ({assumption})", 3)
        return "\n".join(lines)

    def _table(self) -> list[str]:
        both = any(p.after for p in self.predictions)
        lines = [f"{'':<{NAME_WIDTH}}{'now':>26}{'after' if both else '':>26}".rstrip()]
        heads = f"{'requests':>9}{'bytes':>9}{'time':>8}"
        lines.append(f"{'predicted, from cold':<{NAME_WIDTH}}{heads}{heads if both else ''}")
        modality = ""
        for p in self.predictions:
            if p.modality != modality:
                lines.append(f"{shortened(p.modality, NAME_WIDTH)}:")
            modality = p.modality
            name = f"  {p.query}" if modality else p.query
            lines.append(f"{name:<{NAME_WIDTH}}{_shown(p.now)}{_shown(p.after) if both else ''}".rstrip())
        return lines

    def _repr_html_(self) -> str:
        return box(str(self), self._heading(), body(*self._parts()))

    def _heading(self) -> Markup:
        shape = "" if self.n_obs is None else f"{self.n_obs:,} cells × {self.n_vars or 0:,} genes"
        return heading("Diagnosis", shape, self.uri, end=self._verdict)

    def _parts(self) -> list[Markup]:
        found = [
            section(
                f"{number}. {f.element}",
                "",
                facts(("problem", f.problem), ("cost", f.cost), ("remedy", f.remedy)),
                is_open=len(self.findings) <= MOST_OPEN,
                names=[f.problem],
            )
            for number, f in enumerate(self.findings, 1)
        ]
        if self.predictions:
            name = "typical queries" if self.options is None else "typical queries, now and converted"
            found.append(section(name, "predicted, from cold", self._table_html(), is_open=True))
        if self.options is not None:
            command = tag("div", self.command, cls="command")
            found.append(section("then" if self.unpacked else "remedy", "", command, is_open=True))
        if self.assumptions:
            told = joined(tag("div", text, cls="muted") for text in self.assumptions)
            found.append(section("assumptions", "", told, is_open=False, names=self.assumptions))
        return found

    def _table_html(self) -> Markup:
        both = any(p.after for p in self.predictions)
        most = max((c.seconds for p in self.predictions for c in (p.now, p.after) if c), default=0) or 1
        rows = []
        for p in self.predictions:
            query = f"{p.modality}: {p.query}" if p.modality else p.query
            told = [*_cells(p.now), *(_cells(p.after) if both else ())]
            bars = [
                bar(c.seconds / most, cls) if c else ""
                for c, cls in ((p.now, "warm" if both else ""), (p.after, "good"))
            ]
            rows.append((query, *told, joined(bars[: 1 + both])))
        heads = "requests", "bytes", "time"
        named = ["", *(f"{head} now" if both else head for head in heads), *(f"{h} after" for h in heads if both), ""]
        widths = (25, 12, 12, 9, 12, 12, 10, 8) if both else (40, 15, 15, 15, 15)
        return table(named, widths, rows, range(1, len(widths) - 1))


@dataclass(frozen=True)
class Repair:
    """A conversion that a diagnosis proposed, done.

    Parameters
    ----------
    before
        The diagnosis.
    report
        Of the conversion.
    after
        What is found of the store that it wrote.
    """

    before: Diagnosis
    report: ConversionReport
    after: Diagnosis

    def to_dict(self) -> dict[str, Any]:
        """Return all three as plain values."""
        return {"before": self.before.to_dict(), "report": self.report.to_dict(), "after": self.after.to_dict()}

    def __str__(self) -> str:
        command = shlex.join(self.before.arguments_for(self.report.destination))
        return f"{self.before}\n\n$ {command}\n{self.report}\n\n{self.after}"

    def _repr_html_(self) -> str:
        return "".join(shown._repr_html_() for shown in (self.before, self.report, self.after))


def _command(words: Iterable[str]) -> list[str]:
    """Break a command where it is too wide, as a shell takes it."""
    lines = ["  "]
    for word in map(shlex.quote, words):
        if lines[-1].strip() and len(lines[-1]) + len(word) > WIDTH - 3:
            lines[-1] += "\\"
            lines.append("    ")
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]


def _shown(cost: Cost | None) -> str:
    if cost is None:
        return f"{'-':>9}{'-':>9}{'-':>8}"
    return f"{cost.n_requests:>9,}{human_bytes(cost.n_bytes):>9}{human_seconds(cost.seconds):>8}"


def _cells(cost: Cost | None) -> tuple[str, str, str]:
    if cost is None:
        return "", "", ""
    return f"{cost.n_requests:,}", human_bytes(cost.n_bytes), human_seconds(cost.seconds)
