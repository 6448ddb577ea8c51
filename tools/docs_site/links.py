"""Checks every link and picture of a built site that leads inside it: python tools/docs_site/links.py build/docs

Sphinx checks the links that it makes from the pages. This reads what it wrote, so it also sees links of the theme, of
docstrings and of pictures. Links to other sites are not followed: building and checking need no network.
"""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the names that a link may end in."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif value and (name == "src" or (name == "href" and tag in ("a", "link"))):
                self.links.append(value)


page = cache(Page)


def broken_links(site: Path) -> list[str]:
    """A sentence for each link that leads nowhere."""
    wrong = []
    for path in sorted(site.rglob("*.html")):
        for link in dict.fromkeys(page(path).links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            goal = path.parent / unquote(parts.path) if parts.path else path
            here = path.relative_to(site)
            if not goal.is_file():
                wrong.append(f"{here}: expected {link} to lead to a file of the site, but there is none.")
            elif goal.suffix == ".html" and unquote(parts.fragment) not in page(goal.resolve()).anchors:
                wrong.append(f"{here}: expected {link} to lead to an anchor of that page, but it has no such one.")
    return wrong


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not (Path(arguments[0]) / "index.html").is_file():
        print(f"expected the folder of a built site, with an index.html, but got {' '.join(arguments) or 'nothing'}")
        return 2
    site = Path(arguments[0]).resolve()
    wrong = broken_links(site)
    pages = list(site.rglob("*.html"))
    links = sum(len(page(path).links) for path in pages)
    print("\n".join(wrong) if wrong else f"{links} links of {len(pages)} pages lead somewhere.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
