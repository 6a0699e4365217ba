"""`data-engine export`: datasets for trainers, from a run whose pairs are written. No torch."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from data_engine.commands.work_dir import open_finished
from data_engine.errors import UserError
from data_engine.exports import EXPORTS, chosen

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Write the exports that are asked for, and say what was changed or left out. Raises UserError, with nothing
    written, for what cannot be done.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = _arguments(argv)
    names = chosen(arguments.format, "--format")
    output = Path(arguments.output)
    _require_empty(output)
    run = open_finished(
        arguments.work_dir, {"dataset_path": arguments.dataset_path, "image_root": arguments.image_root}
    )
    # Imported late: pyarrow and numpy would delay the messages above.
    from data_engine import exports

    source = run.source()
    if not len(source.pairs):
        raise UserError(f'no pair of "{arguments.work_dir}" is kept: there is nothing to export')
    with _new_folder(output) as scratch:
        built = {}
        for name in names:
            folder, written = exports.build(name, source, scratch)
            print("\n".join(exports.told(name, written)), flush=True)
            if not written.rows:
                raise UserError(exports.why_nothing(name, written))
            built[name] = folder
        exports.move_all(built, output)
    for name in names:
        print(output / name)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; data-engine export --help lists all")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="data-engine export",
        description="Writes the pairs of a run as datasets that trainers load, each as DIR/FORMAT.",
        allow_abbrev=False,
    )
    parser.add_argument("work_dir", metavar="WORK_DIR", type=Path, help="of a run whose pairs are written")
    parser.add_argument(
        "--format", required=True, metavar="LIST", help=f"one or more, with commas: {', '.join(EXPORTS)}"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="an empty folder, or one that is not there yet")
    parser.add_argument("--dataset_path", metavar="PATH", help="where the dataset is, if it has moved since the run")
    parser.add_argument("--image_root", metavar="PATH", help="where its pictures are, if they have moved")
    return parser.parse_args(list(argv))


def _require_empty(output: Path) -> None:
    try:
        found = "not empty" if any(output.iterdir()) else None
    except FileNotFoundError:
        found = None
    except NotADirectoryError:
        found = "a file"
    if found is not None:
        raise UserError(f'--output "{output}" is {found}; name an empty folder, or one that is not there yet')


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A scratch folder in `output`, which is removed again if it was not there before and is empty at the end."""
    from data_engine.store.folders import scratch_folder

    existed = output.exists()
    try:
        with scratch_folder(output, "export") as scratch:
            yield scratch
    finally:
        if not existed:
            with contextlib.suppress(OSError):
                os.rmdir(output)
