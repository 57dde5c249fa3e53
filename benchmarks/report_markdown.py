"""A page as Markdown: the same sections, sentences and tables; plots and pictures are named, not drawn.

It is made from the finished sections, so it cannot say anything else than the page.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

_HEADINGS = {"h1": "#", "h2": "##", "h3": "###", "h4": "####", "summary": "####"}
_BLOCKS = ("p", "li", "dd", "pre", "div", "figcaption", *_HEADINGS)
_SPACES = re.compile(r"\s+")


def markdown_of(page_html: str) -> str:
    """Returns the Markdown of markup that `report_html` made.

    Args:
        page_html: Headings, paragraphs, lists, tables, figures and cards; scripts and styles are left out.
    """
    reader = _Reader()
    reader.feed(page_html)
    reader.close()
    return reader.text()


class _Reader(HTMLParser):
    """Collects blocks; text is escaped, so that nothing in it is markup of Markdown or HTML."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._blocks: list[str] = []
        self._text = ""
        self._term = ""
        self._rows: list[list[str]] | None = None
        self._spans: list[bool] = []
        self._after_badge = -1
        self._silent = 0

    def text(self) -> str:
        """Returns the whole document."""
        self._flush("")
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._blocks)).strip() + "\n"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begins a block, a cell or a mark."""
        if tag in ("script", "style", "nav"):
            self._silent += 1
        elif tag == "table":
            self._flush("")
            self._rows = []
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("th", "td"):
            self._text, self._after_badge = "", -1
        elif tag == "span":
            marked = "badge" in str(dict(attrs).get("class"))
            if marked:
                self._text = self._text.rstrip()
                self._text += "; " if self._after_badge == len(self._text) > 0 else " "
            self._spans.append(marked)
        elif tag in _BLOCKS and self._rows is None:
            self._flush("")

    def handle_endtag(self, tag: str) -> None:
        """Ends a block, a cell or a table."""
        if tag in ("script", "style", "nav"):
            self._silent -= 1
        elif tag in ("th", "td") and self._rows:
            self._rows[-1].append(_plain(self._text).replace("|", "\\|"))
            self._text = ""
        elif tag == "table":
            self._end_table()
        elif tag == "span" and self._spans:
            self._after_badge = len(self._text.rstrip()) if self._spans.pop() else self._after_badge
        elif tag == "dt":
            self._term, self._text = _plain(self._text), ""
        elif tag in _BLOCKS and self._rows is None:
            self._end_block(tag)

    def handle_data(self, data: str) -> None:
        """Adds text."""
        if not self._silent:
            self._text += data

    def _end_block(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._flush(f"{_HEADINGS[tag]} ")
        elif tag == "dd":
            self._text = f"{self._term}: {self._text}"
            self._flush("- ")
        elif tag == "pre":
            lines, self._text = self._text.replace("```", "'''"), ""
            self._blocks += ["", f"```\n{lines}\n```", ""]
        else:
            self._flush({"li": "- ", "figcaption": "(plot or picture) "}.get(tag, ""))

    def _end_table(self) -> None:
        rows, self._rows, self._text = self._rows or [], None, ""
        if not rows:
            return
        width = max(map(len, rows))
        ruler = ["---"] * width
        lines = [rows[0], ruler, *rows[1:]]
        drawn = [f"| {' | '.join([*row, *[''] * (width - len(row))])} |" for row in lines]
        self._blocks += ["", *drawn, ""]

    def _flush(self, prefix: str) -> None:
        text, self._text, self._after_badge = _plain(self._text), "", -1
        if not text:
            return
        apart = [] if prefix == "- " else [""]
        self._blocks += [*apart, f"{prefix}{text}", *apart]


def _plain(text: str) -> str:
    """Returns text on one line in which nothing is markup."""
    line = _SPACES.sub(" ", text).strip()
    for character, safe in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("`", "\\`"), ("*", "\\*")):
        line = line.replace(character, safe)
    line = line.replace("](", "]\\(").replace("]:", "]\\:")
    return re.sub(r"^([#+>-]|\d+\.)(\s)", r"\\\1\2", line)
