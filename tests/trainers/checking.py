"""What the checks of all trainers share: the command line, and rows as a trainer sees them against expected ones.

`check_NAME.py EXPORT_FOLDER FORMAT EXPECTED_FOLDER` runs in the environment of its trainer, so data_engine is not
imported here. EXPECTED_FOLDER/rows.json is a list of rows: `turns` (lists of role and text, `<image>` where a picture
stands), `chosen` and `rejected` or `completion`, `label` and `margin` where the format has them, and `images`: names of
RGB PNG files beside it. Prints one line of JSON and exits 0, or says on stderr what is wrong and exits 1.
"""

import argparse
import json
import math
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

PICTURE = "<image>"
# The one line of figures. Trainers print on stdout while they are imported and later, some of them from native code.
FIGURES = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


class Wrong(Exception):
    """What a trainer would not take as it was meant."""


@dataclass(frozen=True)
class Job:
    """The command line of a check, and a folder for what the trainer writes."""

    folder: Path
    format: str
    expected: Path
    load_only: bool
    all_turns: bool
    checkout: Path | None
    scratch: Path


@dataclass(frozen=True)
class Row:
    """One row as a trainer sees it."""

    turns: Iterable[tuple[str, str]]
    """role and text; a picture is `<image>` in the text, and line breaks behind it do not count"""
    cells: dict
    """the answers, the label and the margin, by their names in rows.json"""
    images: list[Image.Image] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        """What is asked, as text that compares."""
        return json.dumps([[role, re.sub(f"{PICTURE}\n*", PICTURE, text)] for role, text in self.turns])

    @property
    def key(self) -> str:
        """All texts and values of the row, as text that compares."""
        return f"{self.prompt} -> {json.dumps(self.cells, sort_keys=True)}"

    @property
    def pixels(self) -> list[tuple]:
        """Size and RGB pixels of each picture."""
        return [(image.size, image.convert("RGB").tobytes()) for image in self.images]


def read_expected(folder: Path) -> list[Row]:
    """The rows that the trainer must see."""
    rows = []
    for row in json.loads((folder / "rows.json").read_text(encoding="utf-8")):
        images = [Image.open(folder / name) for name in row.pop("images")]
        rows.append(Row(row.pop("turns"), row, images))
    return rows


def require_same(seen: Iterable[Row], expected: list[Row]) -> int:
    """Require that no row is lost, added or changed, in any order, and that pictures have the expected pixels."""
    seen = list(seen)
    left = Counter(row.key for row in expected)
    others = Counter(row.key for row in seen) - left
    left -= Counter(row.key for row in seen)
    if left or others:
        first = [f"{what}: {next(iter(keys))[:400]}" for what, keys in (("lost", left), ("seen", others)) if keys]
        raise Wrong(
            f"{len(seen)} rows are seen, expected {len(expected)}; {left.total()} are lost, {others.total()} are "
            f"not as expected; {'; '.join(first)}"
        )
    wanted = {row.key: row.pixels for row in expected}
    for row in seen:
        for number, (got, want) in enumerate(zip(row.pixels, wanted[row.key], strict=True), 1):
            if got != want:
                sizes = f"{got[0]}, expected {want[0]}" if got[0] != want[0] else "as expected, its pixels are not"
                raise Wrong(f"picture {number} of {row.key[:200]}: its size is {sizes}")
    return len(seen)


def require_apart(rows: list[Row]) -> None:
    """Require that no row follows another of its question, nor the first the last: KTO takes the answer before a row,
    and before the first the last, for one to something else.
    """
    for number, row in enumerate(rows):
        if row.prompt == rows[number - 1].prompt:
            raise Wrong(f"row {number} follows another of its question: {row.prompt[:200]}")


def require_image_tokens(count: int, row: Row, per_image: int) -> None:
    """Require that the trainer put as many image tokens into a row's input as its pictures need."""
    if count != per_image * len(row.images):
        raise Wrong(f"{count} image tokens for {len(row.images)} pictures of {per_image} each: {row.key[:200]}")


def require_trained(text: str, row: Row) -> None:
    """Require that the tokens of a row that have a label say the answer, and nothing that was said before it."""
    if text.strip() != row.cells["completion"].strip():
        raise Wrong(f"what is trained is {text[:200]!r}, expected {row.cells['completion'][:200]!r}")


def require_moved(before: dict, after: dict) -> int:
    """The number of weights (by name) that a step changed; names that one side lacks do not count."""
    moved = [name for name, value in before.items() if name in after and not value.equal(after[name])]
    if not any("language_model" in name for name in moved):
        raise Wrong(f"the step changed no weight of the language model; changed: {moved[:3]}")
    return len(moved)


# The loss of a policy that is still its reference, for any pair and any answer.
FIRST_LOSS = {"dpo": math.log(2), "kto": 0.5}


def require_loss(loss: float, kind: str) -> float:
    """Require the first loss that follows from the formula, or a finite one where none follows."""
    expected = FIRST_LOSS.get(kind)
    if not (math.isfinite(loss) if expected is None else abs(loss - expected) < 1e-3):
        raise Wrong(f"the first loss of {kind} is {loss}, expected {expected or 'a finite number'}")
    return loss


def main(check: Callable[[Job], dict], formats: Iterable[str]) -> None:
    """Run `check` on the command line's job: one line of JSON on stdout, and everything else on stderr."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("format", choices=list(formats))
    parser.add_argument("expected", type=Path)
    parser.add_argument("--load_only", action="store_true", help="no optimiser step")
    parser.add_argument("--all_turns", action="store_true", help="of SFT: train what the trainer does by default")
    parser.add_argument("--checkout", type=Path, help="a clone of the trainer, where PyPI has none")
    options = {
        name: value.resolve() if isinstance(value, Path) else value for name, value in vars(parser.parse_args()).items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        try:
            figures = check(Job(scratch=Path(scratch), **options))
        except Wrong as error:
            sys.exit(f"{options['format']}: {error}")
    print(json.dumps(figures), file=FIGURES, flush=True)
