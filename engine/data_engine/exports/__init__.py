"""Datasets that trainers load: a table of formats, one file for each. No torch here.

A format is a function `write(cleaned, folder, scratch) -> rows`: it writes what `cleaned` gives into the empty
`folder`, may use the folder `scratch` for work in progress, counts what it leaves out by `cleaned.leave_out`, and
returns how many rows it wrote. The same input gives the same bytes.
"""

import contextlib
import errno
import importlib
import logging
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path

from data_engine.errors import UserError, nearest
from data_engine.exports.base import ExportSource, Written
from data_engine.exports.cleaned import Cleaned
from data_engine.plural import plural
from data_engine.store.absent import is_there
from data_engine.store.atomic import sync_folder
from data_engine.store.folders import swap_in, sync_files
from data_engine.store.room import counted
from data_engine.tables import load

# A format is one file and one line here.
EXPORTS = {
    "rlaif-v": "data_engine.exports.formats.rlaif_v:write",
    "rlaif-v-logps": "data_engine.exports.formats.rlaif_v_logps:write",
    "trl": "data_engine.exports.formats.trl:write",
    "trl-kto": "data_engine.exports.formats.trl_kto:write",
    "sft": "data_engine.exports.formats.sft:write",
    "llama-factory": "data_engine.exports.formats.llama_factory:write",
    "llama-factory-kto": "data_engine.exports.formats.llama_factory:write_kto",
    "llama-factory-sft": "data_engine.exports.formats.llama_factory:write_sft",
    "ms-swift": "data_engine.exports.formats.ms_swift:write",
    "ms-swift-kto": "data_engine.exports.formats.ms_swift:write_kto",
    "ms-swift-rm": "data_engine.exports.formats.ms_swift:write_rm",
    "ms-swift-sft": "data_engine.exports.formats.ms_swift:write_sft",
    "internvl-mpo": "data_engine.exports.formats.internvl:write",
    "llava-next": "data_engine.exports.formats.llava_next:write",
    "scored": "data_engine.exports.formats.scored:write",
}
# The formats of the best answer to each question.
BEST_OF_N = tuple(name for name in EXPORTS if name.endswith("sft"))
# The format of work_dir/dataset.
DEFAULT = "rlaif-v"
# Of work_dir, where --export writes.
FOLDER = "exports"

log = logging.getLogger(__name__)


def chosen(text: str | None, flag: str = "--export") -> list[str]:
    """The formats of a list with commas, in its order. Raises UserError, which names the flag, for what is none."""
    names = [name.strip() for name in text.split(",")] if text is not None else []
    for name in names:
        if name not in EXPORTS:
            hint = nearest(name, EXPORTS) or f"; formats: {', '.join(EXPORTS)}"
            raise UserError(f'{flag} names the unknown format "{name}"{hint}')
        if names.count(name) > 1:
            raise UserError(f"{flag} names {name} twice")
    return names


def require_possible(names: Iterable[str], family: str | None, stages: Container[str]) -> None:
    """Raise UserError, before any work, for a format that has no place for answers of an instruct model's family, or
    that needs a stage that the run does not have. `family` None: no instruct model is named."""
    for name in names:
        require = getattr(importlib.import_module(EXPORTS[name].partition(":")[0]), "require", None)
        if require is not None:
            require(family, stages)


def build(name: str, source: ExportSource, scratch: Path) -> tuple[Path, Written]:
    """Write `source` in a format of EXPORTS into a new folder under the folder `scratch`."""
    own = scratch / name
    folder, work = own / "export", own / "work"
    for new in (own, folder, work):
        new.mkdir()
    cleaned = Cleaned(source)
    reached = source.reached
    # Of another format that was written before.
    reached.peak, reached.needed_bytes = 1.0, 0
    with counted(own, lambda: reached.share / reached.peak, lambda: reached.needed_bytes):
        rows = load(EXPORTS[name])(cleaned, folder, work)
    gone = cleaned.without_source
    return folder, Written(rows, cleaned.left_out, cleaned.rewritten, frozenset(gone), first_gone(gone))


def export(
    name: str,
    source: ExportSource,
    target: Path,
    scratch: Path,
    beside: Callable[[Written], Mapping[str, bytes]] | None = None,
) -> Written:
    """Write `source` as the folder `target`, whole or not at all, in a format of EXPORTS.

    Where the format has no place for any of the rows that there are, no folder is written, and one that was there
    before is removed. `scratch` is a folder on the file system of `target`. `beside` says what other files the folder
    has, by name, once it is known what was written.
    """
    new, written = build(name, source, scratch)
    publish(name, new, written, target, beside)
    return written


def publish(
    name: str,
    new: Path,
    written: Written,
    target: Path,
    beside: Callable[[Written], Mapping[str, bytes]] | None = None,
) -> None:
    """Put what `build` made in the place of the folder `target`, as `export` does."""
    old = new.with_name("old")
    if not written.rows and written.left_out:
        log.warning("%s is not written: %s", target, why_nothing(name, written))
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        return
    if not written.rows:
        reason = "no answer can be ranked" if name in BEST_OF_N else "no pair is left"
        log.warning("%s: %s is written without a row, which dataset loaders refuse", reason, target)
    add_files(new, beside(written) if beside else {})
    target.parent.mkdir(parents=True, exist_ok=True)
    swap_in(new, target, old)


def move_all(built: Mapping[str, Path], output: Path) -> None:
    """Move finished exports, by name, into the folder `output`, on whose file system they lie: all or none.

    Raises UserError where one of the names is taken.
    """
    for folder in built.values():
        sync_files(folder)
    try:
        for name, folder in built.items():
            folder.rename(output / name)
    except BaseException as error:
        for name, folder in built.items():
            # One that is not in its first place any more was moved.
            if not is_there(folder):
                (output / name).rename(folder)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise UserError(f'"{output}" is not empty any more: another program has written "{name}" there') from None
        raise
    sync_folder(output)


def add_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write further files of an export, by their names under its folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def first_gone(without_source: Mapping[int | str, str]) -> str:
    """The first question that can no longer be read, and why; empty where all can. `without_source`: idx -> why."""
    return next((f"idx {idx!r}: {problem}" for idx, problem in without_source.items()), "")


def why_nothing(name: str, written: Written) -> str:
    """Why an export has no row: every reason, the most frequent first."""
    reasons = "; ".join(f"{plural(count, 'row')}: {reason}" for reason, count in written.left_out.most_common())
    reasons += f", as of {written.first_gone}" if written.first_gone else ""
    elsewhere = "pairs.parquet has all pairs, and other formats may take them"
    if name in BEST_OF_N:
        elsewhere = "the format scored has every answer"
    return f"the format {name} has no row ({reasons}); {elsewhere}"


def changes(written: Written) -> list[tuple[str, int]]:
    """What an export changed or left out, and how many rows of each."""
    rewritten = [("rewritten, so that a trainer reads control tokens in texts as text", written.rewritten)]
    left_out = [(f"left out: {reason}", count) for reason, count in sorted(written.left_out.items())]
    return (rewritten if written.rewritten else []) + left_out


def told(name: str, written: Written) -> str:
    """What a person should know of an export, a line each."""
    lines = [f"export {name}: {plural(written.rows, 'row')}"]
    lines += [f"  {count:,} {what}" for what, count in changes(written)]
    return "\n".join(lines + ([f"    of {written.first_gone}"] if written.first_gone else []))
