"""`python tests/docs_site.py SITE`: links and anchors of the built site lead somewhere, and no page fetches anything.

A link may lead to another site; what a browser fetches by itself (scripts, styles, pictures, fonts) may not. Prints
what is wrong, and ends with 1 where anything is. No packages beside Python's own.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes by which a browser fetches something without being asked.
FETCHED = {"src", "srcset", "poster", "data"}
# Kinds of <link> that name a page and fetch nothing.
NAMED_ALONE = {"canonical", "alternate", "prev", "next", "edit", "search"}
URL_IN_STYLE = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")


class Page(HTMLParser):
    """The links of a page, what it fetches, and the ids that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.nameless = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        self.fetched += [value for name, value in given.items() if name in FETCHED and value]
        if tag in ("img", "image") and not given.get("src"):
            # `<image>` in a text, where a page does not write it as code.
            self.nameless += 1
        if tag == "link" and not NAMED_ALONE & set(given.get("rel", "").split()):
            self.fetched.append(given.get("href", ""))
        elif "href" in given:
            self.links.append(given["href"])


def is_elsewhere(url: str) -> bool:
    """Whether it names another site; data: URLs hold what they name."""
    parts = urlsplit(url)
    return bool(parts.netloc) or parts.scheme in ("http", "https")


def faults(site: Path) -> list[str]:
    """What is wrong with a site, a line each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = [] if site / "index.html" in pages else [f"{site} has no index.html"]
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name} fetches {url}" for url in page.fetched if is_elsewhere(url)]
        found += [f"{name} has {page.nameless} pictures without an address"] if page.nameless else []
        for url in page.links + page.fetched:
            parts = urlsplit(url)
            if is_elsewhere(url) or parts.scheme:
                continue
            # A server gives this page for a path of any depth, so that its links begin at the root.
            inside = parts.path.removeprefix("/") if path.name == "404.html" else parts.path
            target = (path.parent / unquote(inside)).resolve() if parts.path else path.resolve()
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                found.append(f"{name} leads to {url}, which is not there")
            elif not target.is_relative_to(site.resolve()):
                found.append(f"{name} leads to {url}, out of the site")
            elif parts.fragment and target.suffix == ".html":
                ids = next(other.ids for where, other in pages.items() if where.resolve() == target)
                if unquote(parts.fragment) not in ids:
                    found.append(f"{name} leads to {url}, and there is no such place on that page")
    for path in sorted(site.rglob("*.css")):
        urls = [one or other for one, other in URL_IN_STYLE.findall(path.read_text(encoding="utf-8"))]
        found += [f"{path.relative_to(site)} fetches {url}" for url in urls if is_elsewhere(url)]
    return found


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print("\n".join(wrong) or f"{sys.argv[1]}/index.html: every link leads somewhere, and nothing is fetched")
    sys.exit(bool(wrong))
