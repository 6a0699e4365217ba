"""The table of families in docs/families.md, found by running each: `python tests/families/table.py --write`.

It takes the packages of packages.txt on PYTHONPATH, as `make test-families` has them.
"""

import sys
import tempfile
from pathlib import Path

import product
from asked import ASKED
from checkpoints import Checkpoint
from comparisons import TOLERANCE, score_difference, wrong_greedy_rows
from families import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
HEAD = """# Families

78 families of transformers, each tested as a tiny random checkpoint with a real processor against transformers 5.23;
Llama 4 is there twice, the second time with prompts longer than its `floor_scale`. Another checkpoint of
AutoModelForImageTextToText is tried in the same way when it is used, and takes the plain path where it does not fit;
`data-engine validate` tells before a run what can be known.

| column | yes means |
| --- | --- |
| sampling | greedy ids equal `generate`'s in every row |
| scoring | log-probs are within 1e-4 nat a token of transformers' own whole forward |
| path | fast: an image and its prompt run once for all answers; plain: each answer has a prompt of its own |
| hybrid | some layers carry a state instead of keys and values |
| several images, without image, system and turns | such questions are scored as exactly; else they are not taken |
| `--zero3 on` | two ranks that share the model compute what one does; else it is refused |

With transformers 5.17 and 5.24, log-probs of each family are the same (`make test-oldest test-newest`). A family that a
release is known to compute otherwise, or not at all, is refused with that release, and one without the fault is named:
PaliGemma 2 before 5.23, Llama 4 with 5.24.0. On a GPU, towers that take images or tiles of one size run those of
several prompts together; with 5.17 each image goes alone, which a run says once.

Written by `python tests/families/table.py --write`; do not edit.

"""
COLUMNS = ["family", "peculiar", "sampling", "scoring", "path", "hybrid", "several images", "without image",
           "system, turns", "`--zero3 on`"]  # fmt: skip


def yes(true: bool) -> str:
    return "yes" if true else "no"


def _equal(checkpoint: Checkpoint, *prompts: str) -> bool:
    """Whether log-probs behind these prompts are the stock model's; not where the product refuses one."""
    try:
        return all(score_difference(checkpoint, ASKED[prompt]) <= TOLERANCE for prompt in prompts)
    except ValueError:
        return False


def row(name: str, checkpoint: Checkpoint) -> str:
    """A line of the table."""
    scoring = _equal(checkpoint, "wide", "high")
    sampling = not any(wrong_greedy_rows(checkpoint, ASKED[prompt]) for prompt in ("wide", "high"))
    model = checkpoint.model
    cells = [
        name, checkpoint.family.kind, yes(sampling), yes(scoring), "fast" if product.is_fast(model) else "plain",
        yes(product.is_hybrid(model)), yes(_equal(checkpoint, "two images", "images between words")),
        yes(_equal(checkpoint, "no image")), yes(_equal(checkpoint, "system and turns")),
        yes(product.can_be_split(model, checkpoint.folder)),
    ]  # fmt: skip
    return _line(cells)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    with tempfile.TemporaryDirectory() as folder:
        for name, family in FAMILIES.items():
            if missing := family.missing():
                sys.exit(f"the processor of {name} needs {missing}")
            lines.append(row(name, Checkpoint(name, Path(folder))))
            print(lines[-1], flush=True)
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
