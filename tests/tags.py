"""Reads HTML as strictly as a representation must be written."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"col"}


class Tags(HTMLParser):
    """Collects the tags and attributes, checks that they nest, and keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.drawn: list[str] = []
        self.text: list[str] = []
        self.fallback: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element."""
        self.open += [] if tag in VOID else [tag]
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.drawn += [value or "" for name, value in attrs if name == "d"]

    def handle_endtag(self, tag: str) -> None:
        """Close the element that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep text: what is shown, and what is shown where styles are stripped."""
        if "style" not in self.open:
            (self.fallback if "pre" in self.open else self.text).append(data)


def parsed(html: str) -> Tags:
    """Parse HTML in which every element is closed."""
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert tags.open == []
    return tags
