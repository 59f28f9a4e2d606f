"""Every example in README.md and docs/ runs, in order, as a reader would run it.

A document's blocks share one namespace and one empty working directory. ``s3://lab/`` is an empty
bucket on a local S3 server, reached through the standard AWS variables. Of the fenced blocks,

- ``python`` is executed;
- ``bash`` (or ``sh``, ``console``) has its ``lobster-zarr …`` lines run, also after ``uv run``; other lines are not;
- a block right after ``<!-- no-run: reason -->`` is left out, and the reason is not optional;
- ``<!-- setup`` on a line of its own opens hidden Python that runs in its place, up to ``-->``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from lobster_zarr import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]
BUCKET = "lab"
SHELLS = {"bash", "sh", "shell", "console"}
FENCE = re.compile(r"(?P<indent>\s*)(?P<ticks>`{3,}|~{3,})\s*(?P<language>[\w+-]*)")
NO_RUN = re.compile(r"\s*<!--\s*no-run\b:?\s*(?P<reason>.*?)\s*-->\s*")


@dataclass(frozen=True)
class Block:
    """One block of a document; `line` is that of its first line of code, counted from 1."""

    language: str
    code: str
    line: int
    no_run: bool = False


def read_blocks(text: str) -> list[Block]:
    """Return the fenced and hidden blocks of a Markdown text, in order."""
    lines = text.splitlines()
    blocks: list[Block] = []
    no_run = False
    at = 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        setup = lines[at].strip() == "<!-- setup"
        if fence or setup:
            start = at + 1
            closes = re.compile(r"\s*-->\s*" if setup else rf"\s*{fence['ticks']}{fence['ticks'][0]}*\s*")
            at = next((i for i in range(start, len(lines)) if closes.fullmatch(lines[i])), -1)
            assert at >= 0, f"line {start}: this block is never closed"
            indent = len(fence["indent"]) if fence else 0
            code = "\n".join(line[indent:] for line in lines[start:at])
            blocks.append(Block("python" if setup else fence["language"].lower(), code, start + 1, no_run))
            no_run = False
        elif directive := NO_RUN.fullmatch(lines[at]):
            assert directive["reason"], f"line {at + 1}: no-run without a reason"
            no_run = True
        elif lines[at].strip():
            assert not no_run, f"line {at + 1}: no-run is not followed by a block"
        at += 1
    return blocks


def read_commands(code: str) -> list[list[str]]:
    """Return the arguments of each ``lobster-zarr`` line; a trailing backslash continues it."""
    commands = []
    for line in code.replace("\\\n", " ").splitlines():
        command = line.strip().removeprefix("$ ").removeprefix("uv run ")
        if not command.startswith("lobster-zarr "):
            continue
        words = shlex.shlex(command, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        _, *arguments = words
        shell = {"|", "||", "&", "&&", ";", "<", ">", ">>"}.intersection(arguments)
        assert not shell, f"{command!r} needs a shell for {shell}: write it plainly, or mark the block no-run"
        commands.append(arguments)
    return commands


def run_cli(arguments: list[str], where: str) -> None:
    """Run a command in this process: to start one for each would take longer than all that they do."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", ["lobster-zarr", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    shown = f"{where}: lobster-zarr {shlex.join(arguments)}\n{out.getvalue()}\n{err.getvalue()}"
    assert not ended.value.code, shown


def run_blocks(blocks: list[Block], document: Path) -> int:
    """Run what can be run, in order; return how many blocks ran something."""
    namespace = {"__name__": "__docs__"}
    n_run = 0
    for block in blocks:
        if block.no_run:
            continue
        if block.language in {"python", "py"}:
            # The blank lines make a traceback point into the document.
            source = "\n" * (block.line - 1) + block.code
            exec(compile(source, str(document), "exec"), namespace)
            n_run += 1
        elif block.language in SHELLS:
            commands = read_commands(block.code)
            for arguments in commands:
                run_cli(arguments, f"{document.name}:{block.line}")
            n_run += bool(commands)
    return n_run


@pytest.fixture
def reader(s3, tmp_path, monkeypatch):
    """A reader at an empty directory, with an S3 of their own and an empty bucket in it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    variables = {
        "AWS_ACCESS_KEY_ID": s3.storage_options["key"],
        "AWS_SECRET_ACCESS_KEY": s3.storage_options["secret"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3.endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        s3.bucket(BUCKET)
    yield
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        if found := page.get("Contents"):
            client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": entry["Key"]} for entry in found]})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.usefixtures("reader")
def test_the_examples_run(document):
    blocks = read_blocks(document.read_text(encoding="utf-8"))
    n_run = run_blocks(blocks, document)
    if document.name == "README.md" and any(block.language in {"python", "py"} for block in blocks):
        assert n_run, "README.md has examples, and none of them ran"


EXAMPLE = """
<!-- setup
x = 1
-->
```python
x += 1
```

- in a list

  ```python
  if x:
      x += 1
  ```

<!-- no-run: needs an account -->

```python
raise SystemExit
```
````markdown
```python
nested is text
```
````
```bash
pip install lobster-zarr
```
"""


def test_blocks_are_read_in_order():
    blocks = read_blocks(EXAMPLE)
    assert [block.language for block in blocks] == [*["python"] * 4, "markdown", "bash"]
    assert [block.no_run for block in blocks] == [False, False, False, True, False, False]
    assert [block.line for block in blocks[:3]] == [3, 6, 12]
    assert blocks[2].code == "if x:\n    x += 1"


def test_blocks_share_a_namespace_and_the_unrunnable_do_not_count():
    assert run_blocks(read_blocks(EXAMPLE), Path("example.md")) == 3


def test_a_failing_block_fails_at_its_line():
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks(read_blocks("# title\n\n```python\nx = 0\n1 / x\n```\n"), Path("example.md"))
    assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1) == ("example.md", 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- no-run -->\n```python\n```", "line 1: no-run without a reason"),
        ("<!-- no-run: -->\n```python\n```", "line 1: no-run without a reason"),
        ("<!-- no-run: why -->\ntext", "line 2: no-run is not followed"),
        ("```python\nx = 1", "line 1: this block is never closed"),
        ("<!-- setup\nx = 1", "line 1: this block is never closed"),
    ],
)
def test_a_mistake_in_a_directive_is_told(text, message):
    with pytest.raises(AssertionError, match=re.escape(message)):
        read_blocks(text)


def test_commands_are_read_as_a_shell_would():
    code = """
    pip install lobster-zarr
    $ lobster-zarr query s3://lab/a.zarr "cell_type == 'T cell' and n_counts > 500" \\
        --var CD3D,MS4A1   # two genes
    """
    query = "cell_type == 'T cell' and n_counts > 500"
    assert read_commands(code) == [["query", "s3://lab/a.zarr", query, "--var", "CD3D,MS4A1"]]


@pytest.mark.parametrize("command", ["lobster-zarr info a.zarr | less", "lobster-zarr info a.zarr > a.txt"])
def test_a_command_that_needs_a_shell_is_refused(command):
    with pytest.raises(AssertionError, match="needs a shell"):
        read_commands(command)
