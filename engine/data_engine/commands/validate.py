"""The checks before a run: configuration, folders, dataset, checkpoints. Imports no torch until all else has passed.

launch/run_engine.sh runs them before any rank starts, so that a mistake is reported once and not by every rank.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data_engine import exports, stages
from data_engine.commands.arguments import parse
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.models.check import check_models
from data_engine.models.sharding import settings as zero3_settings
from data_engine.pipeline.pair_settings import Settings
from data_engine.questions.dataset import Questions, open_for_run
from data_engine.questions.first_rows import LOOKED_AT, num_unusable, require_usable
from data_engine.questions.given_rows import GivenFile
from data_engine.questions.image_workers import ImageWorkers


def main(argv: Sequence[str]) -> int:
    """Check what `data-engine run` would be given, and print what was found. Raises UserError at the first mistake."""
    print(check(parse(argv, "validate")), flush=True)
    return 0


def check(config: RunConfig) -> str:
    """What was found. Raises UserError at the first mistake."""
    check_writable(Path(config.work_dir))
    formats = exports.chosen(config.export)
    check_zero3(config)
    questions = open_for_run(config)
    Settings.of(config, config.stages)
    if config.answers is not None:
        # Of its rows nothing yet.
        GivenFile(config.answers, questions.idx_type)
    unusable = check_first_rows(config, questions)
    # Last: fetching a hub id may take an hour.
    roles = config.roles
    checked = check_models(config, roles)
    trained = checked.get(stages.TRAINED)
    exports.require_possible(formats, trained and trained.family, config.stages.by_name)
    answers = f"{len(questions)} questions, {config.sample_k} answers each"
    if config.answers is not None:
        # Imported here, as below.
        from data_engine.job import given

        answers = given.check(config, questions).told()
    models = f"{' and '.join(roles)} model: {' and '.join(checked[role].family for role in roles)}"
    first = f"valid: {answers}; {models if roles else 'no model'}; work_dir {config.work_dir}"
    if not questions.has_images:
        first += "; every question is asked without an image: the dataset has no column of them"
    if unusable:
        first += f"; of the first {LOOKED_AT} rows {unusable} cannot be used"
    # Imported here: it takes torch seconds.
    from data_engine.models.base import pick_device, pick_dtype
    from data_engine.models.describe import told

    device = pick_device(config.device)
    if config.draws_by_vllm:
        from data_engine.job import by_vllm

        by_vllm.check(config, trained, device.type)
    dtype = pick_dtype(config.dtype, device)
    return "\n".join([first, *(f"  {role} model: {told(checked[role], dtype)}" for role in roles)])


def check_first_rows(config: RunConfig, questions: Questions) -> int:
    """How many of the first rows cannot be used. Raises UserError where none can be."""
    if config.continue_from_stage > stages.SAMPLE:
        return 0
    with ImageWorkers() as workers:
        require_usable(questions, config.max_megapixels, workers.decode)
        return num_unusable(questions, config.max_megapixels, workers.decode)


def check_zero3(config: RunConfig) -> None:
    """Raise UserError where zero3 is on without DeepSpeed, or zero3_config is no file of ZeRO-3 settings."""
    zero3_settings.read_settings(config.zero3_config)
    if config.zero3 == "on":
        zero3_settings.require_installed()


def check_writable(work_dir: Path) -> None:
    """Raise UserError where `work_dir` is a file, or neither it nor its nearest existing parent can be written."""
    existing = next(folder for folder in (work_dir, *work_dir.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f'work_dir "{work_dir}": "{existing}" is a file; name a folder, or a place for one')
    try:
        # A real file, since permission bits do not show a full quota or a read-only mount.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f'work_dir "{work_dir}": cannot write to "{existing}": {os.strerror(error.errno)}') from None
