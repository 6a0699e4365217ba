"""What a run needs of its dataset: the columns of pictures and of its sources of reward, looked at before any work."""

from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.questions.dataset import Questions, open_questions
from data_engine.questions.sources.column_names import flag_for, meant_for
from data_engine.stages import SourceFlags

# Of a column that a rule compares answers with, at each start.
_CELLS_READ = 32


def open_for_run(config: RunConfig) -> Questions:
    """The dataset that a configuration names, with the columns that the run's sources of reward read.

    Raises UserError where one is not there.
    """
    questions = open_questions(config, config.further_columns)
    require_images(questions, config)
    for flags in config.source_flags.values():
        require_columns(questions, flags)
    return questions


def require_images(questions: Questions, config: RunConfig) -> None:
    """Raise UserError where paths of images are to be read, and no column has any: all would be asked without one."""
    if config.image_root is not None and not questions.has_images:
        raise UserError(
            f'image_root "{config.image_root}" is given, and the dataset has no column "image" or "images" with paths; '
            f"{questions.listed}; say --columns image=NAME, or leave image_root out"
        )


def require_columns(questions: Questions, flags: SourceFlags) -> None:
    """Raise UserError where the dataset lacks a column that a source of reward reads, or it holds something else.

    The cells of the first rows are read. A later one that cannot be read leaves its own question out.
    """
    missing = [name for name in flags.columns or () if name not in questions.columns]
    if missing:
        meant = meant_for(missing[0], map(questions.in_dataset, questions.columns))
        hint = f"if so meant, say {flag_for({missing[0]: meant})}" if meant else f"or say --columns {missing[0]}=NAME"
        raise UserError(
            f'{flags.needed_by} needs the column "{missing[0]}", and the dataset has none; {questions.listed}; {hint}'
        )
    if flags.reads is not None:
        for name in flags.columns:
            _require_read(questions, name, flags)


def _require_read(questions: Questions, name: str, flags: SourceFlags) -> None:
    for idx, cell in zip(questions.idx[:_CELLS_READ], questions.column(name), strict=False):
        try:
            flags.reads(cell)
        except ValueError as error:
            theirs = questions.in_dataset(name)
            called = "" if theirs == name else f'; the dataset calls it "{theirs}"'
            raise UserError(f"{flags.needed_by}, row idx {idx!r}: {error}{called}") from None
