"""`data-engine report`: the report of a run whose pairs are written, from its work_dir and its dataset. No torch."""

from collections.abc import Sequence

from data_engine.commands.work_dir import read_run, take_option, work_dir_argument
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.questions.dataset import open_questions

# Where the dataset is, if it has moved since the run; --NAME PATH.
PLACES = ("dataset_path", "image_root")


def main(argv: Sequence[str]) -> int:
    """Write the report again and print its path. Raises UserError without pairs, or where the dataset has changed."""
    given, rest = {}, list(argv)
    for name in PLACES:
        value, rest = take_option(rest, name)
        given |= {name: value} if value is not None else {}
    work_dir = work_dir_argument(
        "report",
        "Writes WORK_DIR/report/index.html again, from the pairs and the dataset. Where the dataset has moved since\n"
        "the run, say where it is.",
        rest,
        options=" [--dataset_path PATH] [--image_root PATH]",
    )
    if work_dir is None:
        return 0
    run_file = read_run(work_dir)
    if not (work_dir / "pairs/pairs.parquet").is_file():
        raise UserError(f'"{work_dir}" has no pairs/pairs.parquet yet: let the run finish stage 2 first')
    # Imported late: pyarrow and numpy would delay the messages above.
    from data_engine.pipeline.pair import read_funnel
    from data_engine.reporting.page import write_report
    from data_engine.store.claims import Claims
    from data_engine.store.file_hashes import FileHashes

    # A report needs no template, whose file may be gone.
    config = RunConfig(**run_file["config"] | {"chat_template": None} | run_file.get("places", {}) | given)
    try:
        questions = open_questions(config)
    except UserError as error:
        raise UserError(f"{error}; where the dataset has moved, give --dataset_path") from None
    if questions.fingerprint(FileHashes(work_dir, Claims(work_dir, 0))) != run_file["bound"]["dataset"]:
        raise UserError(f'"{config.dataset_path}" is not the dataset that "{work_dir}" was made from; it has changed')
    print(write_report(work_dir, questions, read_funnel(work_dir), config.max_megapixels, config.exif))
    return 0
