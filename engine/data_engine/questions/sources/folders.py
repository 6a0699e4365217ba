"""The files of a folder that are a dataset, and the splits that their names tell: `train-00000-of-00002`, `test`."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from data_engine.errors import UserError
from data_engine.questions.sources.base import choose_split, refuse
from data_engine.questions.sources.pictures import pictures_below
from data_engine.questions.sources.text_rows import TEXT_ENDINGS
from data_engine.store.absent import matching

# The words by which `datasets` knows a split, and what may stand around one.
_WORDS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
_WORD = re.compile(rf"(?:^|[-._ \d])({'|'.join(_WORDS)})(?=[-._ \d]|$)", re.IGNORECASE)
# What the hub and push_to_hub call their files; older ones end in a hash.
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(?:-[0-9a-f]+)?")
# What `datasets` and LLaMA-Factory write about a dataset, beside it.
_ABOUT = ("dataset_info.json", "dataset_infos.json", "state.json")
_ARROW = ".arrow"
# What map and filter keep in the cache of load_dataset: the rows once more.
_MADE_OF_ROWS = "cache-"


def files_of(folder: Path, split: str | None) -> list[Path]:
    """The files of the chosen split of `folder`, or of its `data` folder, in the order of their names.

    They are parquet files or, where there are none, text files of one kind that say by their names that they belong
    together, or Arrow files. Raises UserError where there are none, or where it is not clear which are meant.
    """
    files = _rows_of(folder)
    if not files:
        # Pictures beside the files may be many, and are looked at for the message alone.
        raise UserError(f'dataset_path "{folder}" has no .parquet file and no `datasets` dataset; {_held_by(folder)}')
    splits: dict[str, list[Path]] = {}
    nameless = []
    for file in files:
        name = _split_of_arrow(file.stem) if file.suffix == _ARROW else _split_of(_stem(file))
        (nameless if name is None else splits.setdefault(name, [])).append(file)
    if len(splits) == 1 and not nameless and not _WORD.fullmatch(next(iter(splits))):
        # part-00000-of-00002.parquet and the like: shards of one table.
        splits, nameless = {}, files
    if not splits:
        refuse(
            split not in (None, "train"),
            f'dataset_split "{split}": no file name in "{folder}" tells a split; leave --dataset_split out to read all',
        )
        return nameless
    if nameless and split is None:
        raise UserError(
            f'dataset_path "{folder}" holds files of the split {", ".join(sorted(splits))} and files of none '
            f"({_some(nameless)}); choose a split with --dataset_split, or move the others away"
        )
    return splits[choose_split(folder, sorted(splits), split)]


def has_rows(folder: Path) -> bool:
    """Whether a folder has files that can be a dataset."""
    return bool(_rows_of(folder))


def told_of_missing_shards(files: Iterable[Path]) -> list[str]:
    """What to say of files whose names tell of more than there are, as behind a download that broke off."""
    tables = Counter((file.parent, *shard.groups()) for file in files if (shard := _SHARD.fullmatch(_stem(file))))
    return [
        f'"{folder}" has {count} of the {int(number)} files {name}-#####-of-{number}: what the others hold is not asked'
        for (folder, name, number), count in tables.items()
        if count < int(number)
    ]


def _rows_of(folder: Path) -> list[Path]:
    data = folder / "data"
    return _own_files(folder) or _own_files(data) or _text_shards(folder) or _text_shards(data) or _arrow_files(folder)


def _own_files(folder: Path) -> list[Path]:
    return _visible(matching(folder, "*.parquet"))


def _arrow_files(folder: Path) -> list[Path]:
    return [file for file in _visible(matching(folder, f"*{_ARROW}")) if not file.name.startswith(_MADE_OF_ROWS)]


def _text_shards(folder: Path) -> list[Path]:
    """The text files of the one kind of which all names tell a split, or differ in their numbers alone; else none.

    A folder may well have a text file that is no dataset, or several with rows of different meanings.
    """
    by_ending: dict[str, list[Path]] = {}
    for file in _visible(matching(folder, "*")):
        ending = _text_ending(file)
        if ending and file.is_file() and file.name not in _ABOUT:
            by_ending.setdefault(ending, []).append(file)
    found = [files for files in by_ending.values() if _belong_together(list(map(_stem, files)))]
    return found[0] if len(found) == 1 else []


def _belong_together(stems: list[str]) -> bool:
    without_numbers = {re.sub(r"\d+", "#", stem) for stem in stems}
    return all(map(_split_of, stems)) or (len(stems) > 1 and len(without_numbers) == 1)


def _visible(files: Iterable[Path]) -> list[Path]:
    return sorted(file for file in files if not file.name.startswith((".", "_")))


def _text_ending(file: Path) -> str | None:
    return next(filter(file.name.lower().endswith, TEXT_ENDINGS), None)


def _stem(file: Path) -> str:
    return file.name[: -len(_text_ending(file) or file.suffix)]


def _split_of(stem: str) -> str | None:
    shard, word = _SHARD.fullmatch(stem), _WORD.search(stem)
    return shard[1] if shard else word[1].lower() if word else None


def _split_of_arrow(stem: str) -> str | None:
    """What stands behind the last hyphen: the cache of load_dataset puts the dataset's name, with any words, before."""
    shard = _SHARD.fullmatch(stem)
    _, hyphen, split = (shard[1] if shard else stem).rpartition("-")
    return split if shard or (hyphen and not split.isdigit()) or _WORD.fullmatch(split) else None


def _held_by(folder: Path) -> str:
    """What a folder without parquet files holds, and which part of it could be meant."""
    inside = sorted(folder.iterdir())
    files = [path for path in inside if path.name not in _ABOUT and path.is_file()]
    files = [path for path in files if _text_ending(path) or path.name.endswith(".gz")]
    # A copy of a repository of the hub has its files as deep: CONFIGURATION/SPLIT/0000.parquet.
    deeper = {file.parent for depth in ("*", "*/*", "*/*/*") for file in folder.glob(f"{depth}/*.parquet")}
    folders = [path.relative_to(folder) for path in sorted(deeper) if _own_files(path)]
    if folders:
        shown = ", ".join(map(str, folders[:5]))
        return f"its folders {shown} have: name one of them as --dataset_path"
    if files:
        told = f"to read one of its files, name the file as --dataset_path: {_some(files)}"
        together = "to read files of text as one, give them names that differ in their numbers alone, as part-0.jsonl"
        return f"{together}; {told}" if len(files) > 1 else told
    texts = sorted(file.relative_to(folder) for depth in ("*", "*/*") for file in folder.glob(f"{depth}/*.*")
                   if _text_ending(file) and file.name not in _ABOUT)  # fmt: skip
    if texts:
        return f"to read one of the files in its folders, name the file as --dataset_path: {_some(texts, str)}"
    held = f"it holds {_some(inside) or 'nothing'}"
    if any(pictures_below(folder, [])):
        return f'{held}; to ask the same about each of its pictures, say so: --question "Describe the picture."'
    if any(folder.glob("*.tar")) or any(folder.glob("*/*.tar")):
        held += "; docs/datasets.md shows how pictures in tar files are asked about"
    return held


def _some(paths: list[Path], shown: Callable[[Path], str] = lambda path: path.name) -> str:
    return ", ".join(map(shown, paths[:5]))
