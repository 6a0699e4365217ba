"""`data-engine report`: the report of a run whose pairs are written, from its work_dir and its dataset. No torch."""

import dataclasses
import logging
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from data_engine.commands.examples import Parser
from data_engine.commands.work_dir import (
    add_places,
    given_path,
    of_one_pairing,
    open_finished,
    require_pairing,
    told_of_disk,
)
from data_engine.errors import UserError
from data_engine.of_pairing import pairs_file


def main(argv: Sequence[str]) -> int:
    """Write the report again and print its path. Raises UserError without pairs, or where the dataset has changed."""
    logging.basicConfig(level=logging.WARNING, format="data-engine: warning: %(message)s", stream=sys.stderr)
    asked = _parser().parse_args(list(argv))
    work_dir, compared = given_path("WORK_DIR", asked.work_dir), asked.compare
    places = {"dataset_path": asked.dataset_path, "image_root": asked.image_root}
    run = open_finished(work_dir, places, name=asked.name)
    if compared is not None:
        if compared == run.name:
            raise UserError(f'--compare "{compared}" is the pairing itself: name another one, or another with --name')
        require_pairing(work_dir, compared)
        # By another --limit one of them has more questions, those of the other among them.
        other = open_finished(work_dir, places, name=compared)
        run = dataclasses.replace(run, questions=max(run.questions, other.questions, key=len))
    # Imported late: numpy would delay the messages before.
    from data_engine.preferences.pairs_metadata import read_funnel
    from data_engine.reporting import compare, page
    from data_engine.store.atomic import replacing

    config = run.config
    read = [run.pairs] if compared is None else [run.pairs, pairs_file(work_dir, compared)]
    if compared is None:
        path = page.report_path(work_dir, run.name)
    else:
        path = compare.comparison_path(work_dir, run.name, compared)
    # An older page stays where the pairs turn out to be written anew.
    with told_of_disk(work_dir), replacing(path) as beside, of_one_pairing(work_dir, *read):
        funnel = read_funnel(work_dir, run.name)
        if compared is None:
            text = page.report_text(work_dir, run.questions, funnel, config.max_megapixels, config.exif, run.name)
        else:
            pairings = ((run.name, funnel), (compared, read_funnel(work_dir, compared)))
            text = compare.comparison_text(work_dir, run.questions, pairings, config.max_megapixels, config.exif)
        beside.write_text(text, encoding="utf-8")
    print(path, flush=True)
    if asked.open:
        _open(path)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="data-engine report",
        description="Writes WORK_DIR/report/index.html again, from the pairs and the dataset.",
        allow_abbrev=False,
    )
    parser.add_argument("work_dir", metavar="WORK_DIR", help="of a run whose pairs are written")
    parser.add_argument(
        "--name", metavar="NAME", help="of a pairing by data-engine pairs: the page is report/NAME/index.html"
    )
    parser.add_argument(
        "--compare", metavar="NAME", help="write a page that holds two pairings side by side, that of --name and this"
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    add_places(parser)
    return parser


def _open(path: Path) -> None:
    """Open a page in the user's browser, or say that there is none."""
    try:
        found = webbrowser.open(path.resolve().as_uri())
    except webbrowser.Error:
        found = False
    if not found:
        print("no browser was found to open it; copy the file to where there is one")
