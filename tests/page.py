"""HTML for notebooks, read as a browser reads it."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import List, Optional, Tuple


class Page(HTMLParser):
    """HTML, as a browser would take it.

    Attributes:
        tags: All that there are.
        attributes: Of all tags: name and value.
        rows: Of all tables but those in a cell: the cells' texts, as they open.
        titles: The lines that stay.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: List[str] = []
        self.attributes: List[Tuple[str, Optional[str]]] = []
        self.rows: List[List[List[str]]] = []
        self.titles: List[str] = []
        self.text: List[str] = []
        self._open: List[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open.append(tag)
        if tag == "tr" and self._open.count("tr") == 1:
            self.rows.append([])
        elif tag in ("td", "th") and self._open.count("tr") == 1:
            self.rows[-1].append([])
        elif tag == "summary" and self._open.count("summary") == self._open.count("details") == 1:
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        assert self._open[-1] == "bdi", f"{data!r} stands alone"
        if "tr" in self._open:
            self.rows[-1][-1].append(data)
        elif "summary" in self._open:
            self.titles[-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    handle_decl = handle_pi = unknown_decl = handle_comment
