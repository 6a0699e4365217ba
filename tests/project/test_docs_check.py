"""The site of docs/: its navigation has every page, its drawings the packages; and its check finds what it is for."""

import re
from pathlib import Path
from xml.etree import ElementTree

import docs_site
import pytest
import yaml
from test_layout import FLOORS, ROOT, ROOTS

SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
DRAWINGS = sorted((ROOT / "docs/drawings").glob("*.svg"))
MAKEFILE = (ROOT / "Makefile").read_text()
SVG = "{http://www.w3.org/2000/svg}"


def site(folder: Path, **pages: str) -> list[str]:
    """What is wrong with a site of these pages; `index` links to the others."""
    links = "".join(f'<a href="{name}.html">' for name in pages)
    for name, body in ({"index": links} | pages).items():
        (folder / f"{name}.html").write_text(f"<html><body>{body}</body></html>")
    return docs_site.faults(folder)


def test_a_site_of_pages_with_sound_links_has_no_fault(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "a.css").write_text("a { background: url(data:image/png;base64,AA) } b { src: url(x.png) }")
    body = '<img src="a.png"><link rel="stylesheet" href="a.css"><a href="index.html"></a><h1 id="b"></h1><a href="#b">'
    assert site(tmp_path, one=f'{body}<a href="https://elsewhere.org/x">', other='<a href="one.html#b">') == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="gone.html">', "leads to gone.html, which is not there"),
        ('<img src="gone.png">', "leads to gone.png, which is not there"),
        ('<a href="index.html#gone">', "leads to index.html#gone, and there is no such place on that page"),
        ('<a href="#gone">', "leads to #gone, and there is no such place on that page"),
        ('<a href="../out.html">', "leads to ../out.html, out of the site"),
        ('<script src="https://cdn.org/x.js"></script>', "fetches https://cdn.org/x.js"),
        ('<script src="//cdn.org/x.js"></script>', "fetches //cdn.org/x.js"),
        ('<link rel="stylesheet" href="https://fonts.org/x.css">', "fetches https://fonts.org/x.css"),
        ("a turn with <image> in it", "has 1 pictures without an address"),
        ('<link rel="preconnect" href="https://fonts.org">', "fetches https://fonts.org"),
    ],
)
def test_a_fault_is_told_with_its_page(body, fault, tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (tmp_path / "out.html").touch()
    assert site(folder, page=body) == [f"page.html {fault}"]


def test_a_style_that_fetches_is_told(tmp_path):
    (tmp_path / "a.css").write_text('@import "https://fonts.org/a.css"; b { src: url("https://fonts.org/b.woff") }')
    told = [f"a.css fetches https://fonts.org/{name}" for name in ("a.css", "b.woff")]
    assert site(tmp_path, page="") == told


def test_the_check_of_an_empty_folder_fails(tmp_path):
    assert docs_site.faults(tmp_path) == [f"{tmp_path} has no index.html"]


def names(nav: list) -> list[str]:
    """The files of a navigation, in order."""
    found = []
    for entry in nav:
        for value in entry.values():
            found += names(value) if isinstance(value, list) else [value]
    return found


def test_the_navigation_has_every_page_once():
    assert sorted(names(SETTINGS["nav"])) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_every_page_of_docs_is_reached_from_the_readme():
    """In one step, or over a page that the README links to."""
    link = re.compile(r"\]\((?:docs/)?([\w-]+\.md)")
    first = set(link.findall((ROOT / "README.md").read_text())) - {"CONTRIBUTING.md"}
    reached = first | {name for page in first for name in link.findall((ROOT / "docs" / page).read_text())}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} <= reached


def test_the_drawing_of_the_packages_has_each_on_its_floor():
    tree = ElementTree.parse(ROOT / "docs/drawings/house.svg").getroot()
    drawn = [(float(text.get("y")), text.text) for text in tree.iter(f"{SVG}text") if text.get("class") == "name"]
    heights = sorted({height for height, _ in drawn})
    floors = [{name for height, name in drawn if height == floor} for floor in heights]
    assert len(floors) == len(FLOORS)
    packages = {path.parent.name for root in ROOTS for path in root.glob("*/*/__init__.py")} | {"data_engine_kernels"}
    assert packages <= set().union(*floors)
    for floor, known in zip(floors, FLOORS, strict=True):
        assert floor <= set(known.split())


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.name)
def test_a_drawing_has_a_title_and_colours_for_the_dark_and_fetches_nothing(path):
    text = path.read_text()
    root = ElementTree.fromstring(text)
    assert root.find(f"{SVG}title").text
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]
    # Every class has a colour.
    classes = {element.get("class") for element in root.iter() if element.get("class")}
    assert all(re.search(rf"\.{name} \{{", text) for name in classes)


def test_the_site_needs_no_more_than_the_extra_docs():
    """The Makefile installs by name what setup.cfg calls the extra."""
    extra = re.search(r"^docs =\n((?:    .*\n)+)", (ROOT / "setup.cfg").read_text(), re.MULTILINE)[1].split()
    wanted = {re.match(r"[\w-]+", line)[0] for line in extra}
    installed = re.findall(r"pip install --quiet -c launch/constraints.txt ([\w-]+)$", MAKEFILE, re.MULTILINE)
    assert set(installed) == wanted
    pins = {line.partition("==")[0] for line in (ROOT / "launch/constraints.txt").read_text().splitlines()}
    assert wanted <= pins


def test_this_check_is_the_one_that_make_runs():
    assert f"$(PYTHON) tests/{Path(docs_site.__file__).name} $(SITE)" in MAKEFILE
