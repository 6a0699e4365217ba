"""`data-engine export`: datasets for trainers, from a run whose pairs are written. No torch."""

import argparse
import contextlib
import dataclasses
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_engine import stages
from data_engine.commands.examples import Parser
from data_engine.commands.work_dir import add_places, given_path, of_one_pairing, open_finished, read_run, told_of_disk
from data_engine.errors import UserError
from data_engine.exports import (
    BEST_OF_N,
    EXPORTS,
    FOLDER,
    add_files,
    build,
    chosen,
    move_all,
    require_possible,
    told,
    why_nothing,
)
from data_engine.exports.licences import check_licence
from data_engine.flag_files import require_filled_in
from data_engine.processes.signals import interrupted_by_signals
from data_engine.store.folders import scratch_folder

if TYPE_CHECKING:
    from data_engine.pipeline.export import FinishedRun

SCRATCH = "export"


def main(argv: Sequence[str]) -> int:
    """Write the exports that are asked for, and push one to the hub.

    Says what was changed or left out. Raises UserError, with nothing written, for what cannot be done.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    asked = _arguments(argv)
    names = chosen(asked.format, "--format")
    _check_min_reward(asked.min_reward, names)
    repo = _checked_repo(asked, names)
    if asked.output is not None:
        _require_empty(asked.output)
        _require_outside(asked.output, asked.work_dir)
    with interrupted_by_signals(), told_of_disk(asked.output or asked.work_dir):
        places = {"dataset_path": asked.dataset_path, "image_root": asked.image_root}
        run = open_finished(asked.work_dir, places, _needed(asked.work_dir), asked.name)
        # What is only pushed is gone afterwards.
        with _new_folder(asked.output or asked.work_dir) as scratch:
            _export(run, asked, names, repo, scratch)
    return 0


def _needed(work_dir: Path) -> list[tuple[str, str]]:
    """Entries of run.json that exports are made from; a run of given answers may name no model to train."""
    named = read_run(work_dir).get("config", {}).get("instruct_model_path")
    return [("units", "unit_size"), *([("models", stages.TRAINED)] if named else [])]


def _export(run: "FinishedRun", asked: argparse.Namespace, names: list[str], repo: str | None, scratch: Path) -> None:
    with of_one_pairing(run.work_dir, run.pairs):
        built = _build(run, names, scratch, asked.license, asked.min_reward)
    if repo is not None:
        from data_engine.exports import hub

        print(hub.push(built[names[0]], repo, private=asked.private), flush=True)
    if asked.output is not None:
        move_all(built, asked.output)
        print("\n".join(str(asked.output / name) for name in names))


def _build(
    run: "FinishedRun", names: list[str], scratch: Path, licence: str | None, min_reward: float | None
) -> dict[str, Path]:
    """The folders of finished exports, by name."""
    require_possible(names, run.trained.get("family"), run.stages.by_name)
    source, built = dataclasses.replace(run.source(), min_reward=min_reward), {}
    for name in names:
        built[name], written = build(name, source, scratch)
        if not written.rows and not written.left_out:
            raise UserError(_nothing(name, run.work_dir, run.pairs))
        print(told(name, written), flush=True)
        if not written.rows:
            raise UserError(why_nothing(name, written))
        add_files(built[name], run.card(name, written, licence))
    return built


def _nothing(name: str, work_dir: Path, pairs: Path) -> str:
    """Why a format has no row, of which none was left out."""
    if name in BEST_OF_N:
        return (
            f'no answer of "{work_dir}" can be ranked: the format {name} has nothing to write; the format scored has '
            "every answer with the reason"
        )
    return (
        f'no pair of "{pairs}" is kept: the format {name} has nothing to write; those that are made of answers need '
        f"none: {', '.join((*BEST_OF_N, 'scored'))}"
    )


def _check_min_reward(least: float | None, names: Sequence[str]) -> None:
    if least is not None and not set(BEST_OF_N) & set(names):
        raise UserError(
            f"--min_reward is about the formats {', '.join(BEST_OF_N)}, and --format names {', '.join(names)}"
        )
    if least is not None and not math.isfinite(least):
        raise UserError(f"--min_reward must be a finite number, got {least}")


def _checked_repo(asked: argparse.Namespace, names: list[str]) -> str | None:
    """The repository to push to, once nothing that can be known speaks against it; None where nothing is pushed."""
    if asked.license is not None:
        check_licence(asked.license)
    if asked.push_to_hub is None:
        if asked.output is None:
            raise UserError("where to? give --output DIR, --push_to_hub REPO, or both")
        if asked.private:
            raise UserError("--private is about --push_to_hub REPO, which is not given")
        return None
    if len(names) > 1:
        raise UserError(f"--push_to_hub takes one format, got {len(names)}: {', '.join(names)}")
    from data_engine.exports import hub

    return hub.check_hub(asked.push_to_hub, asked.private, asked.license)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="data-engine export",
        description="Writes the pairs of a run as datasets that trainers load, each as DIR/FORMAT.",
        allow_abbrev=False,
    )
    parser.add_argument("work_dir", metavar="WORK_DIR", help="of a run whose pairs are written")
    parser.add_argument(
        "--format", required=True, metavar="LIST", help=f"one or more, with commas: {', '.join(EXPORTS)}"
    )
    parser.add_argument("--name", metavar="NAME", help="of a pairing by data-engine pairs; default: the run's own")
    parser.add_argument(
        "--min_reward", type=float, metavar="NUMBER",
        help=f"of the formats {', '.join(BEST_OF_N)}: leave out best answers with less of the first reward that "
        "ranks, such as wrong ones by a rule; default: none is left out",
    )  # fmt: skip
    parser.add_argument("--output", metavar="DIR", help="an empty folder, or one that is not there yet")
    parser.add_argument("--push_to_hub", metavar="REPO", help="OWNER/NAME of a dataset on the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="a dataset that --push_to_hub creates is private")
    parser.add_argument(
        "--license", metavar="ID", help="of the data, for its card; --push_to_hub needs it: cc-by-4.0, ..."
    )
    add_places(parser)
    found = parser.parse_args(list(argv))
    found.work_dir = given_path("WORK_DIR", found.work_dir)
    found.output = None if found.output is None else given_path("--output", found.output)
    return found


def _require_empty(output: Path) -> None:
    try:
        # An export that was killed may have left its scratch, which the next one removes.
        require_filled_in("--output", output)
        found = "not empty" if any(not path.name.startswith(f".{SCRATCH}.") for path in output.iterdir()) else None
    except FileNotFoundError:
        found = "a link to nothing" if output.is_symlink() else None
    except NotADirectoryError:
        found = "a file"
    except OSError as error:
        raise UserError(f'--output "{output}" cannot be used: {error.strerror}') from None
    if found is not None:
        raise UserError(f'--output "{output}" is {found}; name an empty folder, or one that is not there yet')


def _require_outside(output: Path, work_dir: Path) -> None:
    """Raise UserError for a folder in which the run itself writes: it removes what else is there, or reads it."""
    own = [*stages.known(), "dataset", "pairs", "report", FOLDER]
    # Not by Path.resolve, which raises where links lead in a circle.
    real = Path(os.path.realpath(output))
    inside = [name for name in own if real.is_relative_to(os.path.realpath(work_dir / name))]
    if inside:
        raise UserError(f'--output "{output}" lies in "{work_dir / inside[0]}", which is the run\'s own; name another')


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A scratch folder in `output`, which is removed again if it was not there before and is empty at the end.

    So are those above it.
    """
    new = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        with scratch_folder(output, SCRATCH) as scratch:
            yield scratch
    finally:
        with contextlib.suppress(OSError):
            for folder in new:
                os.rmdir(folder)
