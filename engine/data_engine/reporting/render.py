"""The page's text: a template, its style sheet and script inlined, values escaped, and data that cannot end it."""

import functools
import html
import json
from pathlib import Path

import jinja2
from markupsafe import Markup

from data_engine.plural import plural

# Inside <script> only these matter: what could end it or open a comment, and two line ends of old JavaScript.
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
FOLDER = Path(__file__).parent
# What a page holds besides its own markup.
PARTS = {"css": "page.css", "differing": "differing.js", "js": "page.js"}


def escaped_json(value: object) -> str:
    """JSON that may stand inside <script>: no <, > or & in it. Raises ValueError for NaN."""
    told = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return told.translate(_ESCAPES)


def called(work_dir: Path) -> str:
    """What a page calls a run: the end of its path, by which tabs of a browser are told apart."""
    return "/".join(work_dir.resolve().parts[1:][-2:])


def render(template: str, data: object, **values: object) -> str:
    """A template of this folder, with `data` for the script."""
    parts = {name: Markup((FOLDER / file).read_text(encoding="utf-8")) for name, file in PARTS.items()}
    return _environment().get_template(template).render(values | parts | {"data": Markup(escaped_json(data))})


@functools.cache
def _environment() -> jinja2.Environment:
    """Once a process: it keeps the templates that it has compiled."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_escaped,
    )
    environment.filters |= {"thousands": "{:,}".format, "plural": plural}
    return environment


def _escaped(value: object) -> Markup:
    """Escaped as html.escape does, which writes &quot; and &#x27;; Jinja2's own escaping writes &#34; and &#39;."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))
