"""The reference pages name everything public: docs/cli.md is made from the commands, docs/api.md lists the API.

After a change to a command: ``uv run python -m tests.test_reference`` writes the page anew.
"""

from __future__ import annotations

import importlib
import inspect
import re
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import get_args, get_type_hints

from typer.models import ArgumentInfo

import lobster_zarr as lz
from lobster_zarr import backends, bucket
from lobster_zarr.cli import app

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS = DOCS / "cli.md"
MADE = "<!-- what follows is made by tests/test_reference.py -->\n"


def written_as(name: str, kind: object, described) -> str:
    """How an argument or option is written on the command line."""
    if isinstance(described, ArgumentInfo):
        return f"`{name.upper()}`"
    given = [d for d in (described.default, *(described.param_decls or ())) if isinstance(d, str)]
    names = [n for part in given for n in part.split("/")] or [f"--{name.replace('_', '-')}"]
    spelled = ", ".join(f"`{n}`" for n in names)
    kinds = [k for k in (get_args(kind) or (kind,)) if k is not type(None)]
    if kinds == [bool]:
        return spelled
    chosen = [k for k in kinds if isinstance(k, type) and issubclass(k, StrEnum)]
    value = ", ".join(f"`{v.value}`" for v in chosen[0]) if chosen else (described.metavar or "").lower()
    return f"{spelled} {value or {int: 'n', Path: 'path'}.get(kinds[0], 'text')}"


def table_of(command, group: str = "") -> str:
    """One command: its help, how it is called and what it takes."""
    name, parameters = f"{group} {command.__name__.replace('_', '-')}".lstrip(), inspect.signature(command).parameters
    described = {n: get_args(hint) for n, hint in get_type_hints(command, include_extras=True).items() if n != "return"}
    arguments = [n.upper() for n, (_, info) in described.items() if isinstance(info, ArgumentInfo)]
    lines = [f"## {name}", "", inspect.getdoc(command).splitlines()[0], ""]
    lines += ["```text", " ".join(["lobster-zarr", name, *arguments, *["[OPTIONS]"] * bool(described)]), "```"]
    if described:
        lines += ["", "| | | by default |", "|---|---|---|"]
    for n, (kind, info) in described.items():
        default = parameters[n].default
        shown = "" if default in (None, False, inspect.Parameter.empty) else f"`{getattr(default, 'value', default)}`"
        lines.append(f"| {written_as(n, kind, info)} | {info.help} | {shown} |")
    return "\n".join(lines)


def tables() -> str:
    alone = [table_of(command.callback) for command in app.registered_commands]
    grouped = [
        table_of(command.callback, group.typer_instance.info.name)
        for group in app.registered_groups
        for command in group.typer_instance.registered_commands
    ]
    return "\n\n".join(alone + grouped) + "\n"


def test_the_page_of_commands_is_that_of_the_commands():
    _, _, written = COMMANDS.read_text(encoding="utf-8").partition(MADE)
    assert written.strip() == tables().strip(), "run: uv run python -m tests.test_reference"


def public() -> set[str]:
    """Where everything public is defined."""
    objects = [getattr(lz, name) for name in lz.__all__ if name != "errors"]
    objects += [getattr(module, name) for module in (backends, bucket) for name in module.__all__]
    if find_spec("lobster") is not None:
        plugin = importlib.import_module("lobster_zarr.lobster")
        objects += [getattr(plugin, name) for name in plugin.__all__]
    return {f"{o.__module__}.{o.__qualname__}" for o in objects} | {"lobster_zarr.errors"}


def test_the_api_lists_everything_public():
    listed = re.findall(r"^::: (\S+)", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert public() <= set(listed), public() - set(listed)


if __name__ == "__main__":
    head, _, _ = COMMANDS.read_text(encoding="utf-8").partition(MADE)
    COMMANDS.write_text(f"{head}{MADE}\n{tables()}", encoding="utf-8")
