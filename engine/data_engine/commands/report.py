"""`data-engine report`: the report of a run whose pairs are written, from its work_dir and its dataset. No torch."""

import logging
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from data_engine.commands.work_dir import (
    of_one_pairing,
    open_finished,
    require_pairing,
    take_option,
    told_of_disk,
    work_dir_argument,
)
from data_engine.errors import UserError

# Where the dataset is, if it has moved since the run; --NAME PATH.
PLACES = ("dataset_path", "image_root")


def main(argv: Sequence[str]) -> int:
    """Write the report again and print its path. Raises UserError without pairs, or where the dataset has changed."""
    logging.basicConfig(level=logging.WARNING, format="data-engine: warning: %(message)s", stream=sys.stderr)
    given, rest = {}, list(argv)
    pairing, rest = take_option(rest, "name")
    compared, rest = take_option(rest, "compare")
    for name in PLACES:
        value, rest = take_option(rest, name)
        given |= {name: value} if value is not None else {}
    opened = "--open" in rest
    work_dir = work_dir_argument(
        "report",
        "Writes WORK_DIR/report/index.html again, from the pairs and the dataset; with --name,\n"
        "report/NAME/index.html of a pairing by data-engine pairs. --compare NAME writes a page that holds two\n"
        "pairings side by side, that of --name and this one. --open opens the page in a browser. Where the dataset\n"
        "has moved since the run, say where it is.",
        [word for word in rest if word != "--open"],
        options=" [--name NAME] [--compare NAME] [--open] [--dataset_path PATH] [--image_root PATH]",
    )
    if work_dir is None:
        return 0
    run = open_finished(work_dir, given, name=pairing)
    if compared is not None:
        if compared == run.name:
            raise UserError(f'--compare "{compared}" is the pairing itself: name another one, or another with --name')
        require_pairing(work_dir, compared)
    # Imported late: numpy would delay the messages before.
    from data_engine.pipeline.export import read_metadata
    from data_engine.pipeline.pair import pairs_file, read_funnel
    from data_engine.reporting import compare, page
    from data_engine.store.atomic import replacing

    config = run.config
    if compared is not None:
        read_metadata(work_dir, compared)
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
    if opened:
        _open(path)
    return 0


def _open(path: Path) -> None:
    """Open a page in the user's browser, or say that there is none."""
    try:
        found = webbrowser.open(path.resolve().as_uri())
    except webbrowser.Error:
        found = False
    if not found:
        print("no browser was found to open it; copy the file to where there is one")
