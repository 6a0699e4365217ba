"""The dataset that RLAIF-V's trainer reads, and the default: question, chosen, rejected, idx and image, in parquet."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_engine import schemas
from data_engine.exports.cleaned import Cleaned
from data_engine.exports.features import with_features
from data_engine.exports.parquet_files import write_files
from data_engine.exports.shuffle import Key, pair_key, shuffled
from data_engine.questions.dataset import Question


def write(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write folder/dpo_dataset*.parquet, shuffled by the seed."""
    questions = cleaned.source.questions
    schema = with_features(schemas.dpo_dataset(questions.idx_type, questions.optional_columns))
    rows = shuffled(single_rows(cleaned), schema, cleaned.source, scratch)
    write_files(folder, "dpo_dataset", rows, schema)
    return len(rows)


def single_rows(cleaned: Cleaned) -> Iterator[tuple[Key, dict]]:
    """A row a pair of each question that is one image and one text, with nothing around them.

    Of any other, the columns would show the model something else than what its answers were given to.
    """
    for group in cleaned.pairs(lambda question: question.is_single):
        for pair in group.rows:
            yield pair_key(pair), row_of(group.question, pair)


def row_of(question: Question, pair: Mapping) -> dict:
    """One row of schemas.dpo_dataset; columns that its schema does not have are ignored."""
    return {
        "idx": pair["idx"],
        "question": question.question,
        "chosen": pair["chosen"],
        "rejected": pair["rejected"],
        "image": {"bytes": question.image, "path": question.image_path},
        **{name: question.extra.get(name) for name in schemas.OPTIONAL_COLUMNS},
    }
