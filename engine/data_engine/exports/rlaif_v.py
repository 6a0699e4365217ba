"""The dataset that RLAIF-V's trainer reads, and the default: question, chosen, rejected, idx and image, in parquet."""

from collections.abc import Mapping
from pathlib import Path

from data_engine import schemas
from data_engine.exports.base import KeptPairs, Written
from data_engine.exports.parquet_files import write_files
from data_engine.exports.shuffle import shuffled
from data_engine.questions.dataset import Question


def write(kept: KeptPairs, folder: Path, scratch: Path) -> Written:
    """Write folder/dpo_dataset*.parquet, shuffled by the seed."""
    schema = schemas.dpo_dataset(kept.questions.idx_type, kept.questions.optional_columns)
    rows = shuffled(kept, schema, row_of, scratch)
    write_files(folder, "dpo_dataset", rows, schema)
    return Written(len(rows), rows.without_source, rows.not_fitting)


def row_of(question: Question, pair: Mapping) -> dict | None:
    """One row of schemas.dpo_dataset; columns that its schema does not have are ignored.

    None for a question that is not one image and one text, with nothing around them: a trainer would show the model
    something else than what the answers were given to.
    """
    if not question.is_single:
        return None
    return {
        "idx": pair["idx"],
        "question": schemas.without_image_marker(question.question),
        "chosen": pair["chosen"],
        "rejected": pair["rejected"],
        "image": {"bytes": question.image, "path": question.image_path},
        **{name: question.extra.get(name) for name in schemas.OPTIONAL_COLUMNS},
    }
