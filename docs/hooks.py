"""What mkdocs does to the pages before it renders them.

The hidden blocks that ``tests/test_docs.py`` runs are taken out, notebooks become pages, with the outputs
that are stored in them, and the roles in docstrings plain code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

HIDDEN = re.compile(r"^[ \t]*<!--\s*(?:setup$.*?^-->[ \t]*|no-run\b.*?-->[ \t]*)\n", re.MULTILINE | re.DOTALL)
NOTEBOOK_LINK = re.compile(r"(\]\([^)\s]+)\.ipynb(#[^)\s]*)?\)")
ROLE = re.compile(r":(?:attr|class|func|meth|mod):<code>~?")
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)\s]+\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook; the notebook itself stays, to be downloaded."""
    for file in [f for f in files if f.src_uri.endswith(".ipynb")]:
        content = "\n\n".join(_rendered(Path(str(file.abs_src_path))))
        files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leave out what readers do not see; link the pages of notebooks, and nothing that is not in the site."""
    shown = HIDDEN.sub("", markdown)
    if "/" not in page.file.src_uri:  # a file of the repository beside docs/
        shown = OUTSIDE.sub(r"`\1`", shown)
    return shown if "/notebooks/" in f"/{page.file.src_uri}" else NOTEBOOK_LINK.sub(r"\1.md\2)", shown)


def on_page_content(html: str, **_: Any) -> str:
    """Show what docstrings refer to by a role as code."""
    return ROLE.sub("<code>", html)


def _rendered(path: Path) -> Iterator[str]:
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        if number == 0:
            yield f"[Download this notebook]({path.name})"
        for output in cell.get("outputs", []):
            yield from _output(output)


def _output(output: dict[str, Any]) -> Iterator[str]:
    shown = output.get("data", {})
    if "image/png" in shown:
        picture = "".join(shown["image/png"]).replace("\n", "")
        yield f"![output](data:image/png;base64,{picture})"
    elif text := "".join(output.get("text", shown.get("text/plain", ""))).rstrip():
        yield f"``` {{ .text .output }}\n{text}\n```"
