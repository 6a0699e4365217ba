"""What a dataset calls its columns, where that is not what the engine calls them: --columns question=prompt."""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

import pyarrow as pa

from data_engine.errors import UserError, nearest
from data_engine.schemas import INPUT_COLUMNS, OPTIONAL_COLUMNS

# The end of a message about ids that are missing or unfit.
NUMBERED = "; --columns idx= numbers the rows instead"
_SPACED = '; the name "{}" begins or ends with a space, which --columns takes off: rename the column'
# Other names under which datasets have a column, the likeliest first; in small letters, with nothing between words.
_OFTEN_CALLED = {
    "answer": ("answers", "response", "reference", "groundtruth", "gtanswer", "solution"),
    "idx": ("id", "ids", "index", "uid", "uuid", "questionid", "qid", "pid", "sampleid", "imageid", "indexlevel0",
            "unnamed:0"),
    "question": ("questiontext", "prompt", "query", "instruction", "text", "input"),
    "image": (
        "picture", "img", "imagefile", "filename", "imagepath", "imgpath", "imagename", "imagebytes", "imagestr",
        "imagebase64",
    ),
    "images": ("pictures",),
}  # fmt: skip
_OTHERS = {name for names in _OFTEN_CALLED.values() for name in names}


@dataclass(frozen=True)
class ColumnNames:
    """Names of columns in the engine and in the dataset; without `theirs` they are the same."""

    theirs: Mapping[str, str] = field(default_factory=dict)
    """the engine's name -> the dataset's; empty for a column that is not read"""
    further: tuple[str, ...] | None = ()
    """columns that are read besides those of the engine, by its names; None: all that there are"""

    def are_read(self, columns: Iterable[str]) -> list[str]:
        """The columns that are read, by the engine's names, each once: the engine's own come first."""
        own, columns = (*INPUT_COLUMNS, *OPTIONAL_COLUMNS), dict.fromkeys(columns)
        further = columns if self.further is None else [name for name in columns if name in self.further]
        return list(dict.fromkeys([*(name for name in own if name in columns), *further]))

    def in_dataset(self, name: str) -> str:
        """What the dataset calls a column of the engine."""
        return self.theirs.get(name, name)

    def ours(self, name: str) -> list[str]:
        """What the engine calls a column of the dataset: several names for one that stands for several columns, none
        for one that is not read.
        """
        given = [ours for ours, theirs in self.theirs.items() if theirs == name]
        return given or ([] if self.hides(name) else [name])

    def hides(self, name: str) -> bool:
        """Whether another column of the dataset, or none, has this name of the engine."""
        return self.theirs.get(name, name) != name

    def renamed(self, schema: pa.Schema) -> pa.Schema:
        """A schema of the dataset with the engine's names, without the columns that are not read."""
        return pa.schema([field.with_name(name) for field in schema for name in self.ours(field.name)])

    def require_there(self, columns: Mapping[str, object], name: str) -> None:
        """Raise UserError where the dataset lacks a column that --columns names; `columns` has the engine's names."""
        for ours, theirs in self.theirs.items():
            if theirs and ours not in columns:
                spaced = next((one for one in map(self.in_dataset, columns) if one.strip() == theirs), None)
                hint = nearest(theirs, map(self.in_dataset, columns)) if spaced is None else _SPACED.format(spaced)
                told = f'columns {ours}={theirs}: {name} has no column "{theirs}"; {self.listed(columns)}{hint}'
                raise UserError(told)

    def listed(self, columns: Iterable[str]) -> str:
        """The dataset's names of these columns of the engine, for the end of a message."""
        return f"columns: {', '.join([*dict.fromkeys(map(self.in_dataset, columns))][:20])}"


SAME_NAMES = ColumnNames()


def meant_for(ours: str, theirs: Iterable[str]) -> str | None:
    """The column of the dataset that may be meant by the engine's: it is often called so, or it is a typo."""
    # --columns takes no name with a comma, or with a space at an end.
    plain = {_plain(one): one for one in reversed([*theirs]) if "," not in one and one == one.strip()}
    called = next((plain[name] for name in (_plain(ours), *_OFTEN_CALLED.get(ours, ())) if name in plain), None)
    # The id of an image is no typo of "image", and one with a number behind it is one of several.
    typos = [name for name in plain if name not in _OTHERS and not name[-1:].isdigit()]
    near = get_close_matches(_plain(ours), typos, n=1, cutoff=0.8)
    return called or (plain[near[0]] if near else None)


def flag_for(theirs: Mapping[str, str]) -> str:
    """--columns with names of the dataset by the engine's, as a shell takes it."""
    return f"--columns {shlex.quote(','.join(f'{ours}={name}' for ours, name in theirs.items()))}"


def _plain(name: str) -> str:
    """A name in small letters, with nothing between words."""
    return re.sub("[-_ .]", "", name.lower())
