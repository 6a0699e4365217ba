"""Every check before a run, by name: `validate`, `submit` and a `run` that was refused go through them all.

A check is a function that raises UserError, or notes several. One that needs what another check found, or a field of
the configuration, is left out where that is wrong. Adding one is a function and a line of CHECKS. No torch here: what
needs it is asked for by weights.py, and done in a process of its own.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from data_engine import exports, stages
from data_engine.config import Draft, RunConfig
from data_engine.config_checks import without_pairs
from data_engine.errors import BadRow, UserError
from data_engine.job import limit, run_file
from data_engine.job.earlier import incomplete
from data_engine.models.check import check_folder
from data_engine.models.roles import folder_of, naming_flag
from data_engine.models.sharding import settings as zero3_settings
from data_engine.pipeline.pair_settings import chosen_rewards, without_effect
from data_engine.planning import sizes, weights
from data_engine.planning.found import FirstRows, Found, telling_unread
from data_engine.planning.own_folders import check_writable, require_open
from data_engine.plural import plural
from data_engine.preferences import strategies
from data_engine.processes import output
from data_engine.questions.dataset import open_questions, read_images
from data_engine.questions.first_rows import LOOKED_AT, most_frequent, refusal
from data_engine.questions.given_answers import check_answers, require_usable
from data_engine.questions.given_rows import GivenFile
from data_engine.questions.image_workers import ImageWorkers
from data_engine.questions.images import BadImage
from data_engine.questions.of_run import require_columns, require_images
from data_engine.stages import COMPARED, JUDGES, SOURCES
from data_engine.store.file_hashes import RememberedHashes
from data_engine.store.room import compared, megabytes, nearest_folder
from data_engine.tables import load


class Check(NamedTuple):
    """One check, and what it goes by."""

    name: str
    hold: Callable[[Found], object]
    needs: tuple[str, ...] = ()
    """names of checks without which it would mean nothing"""
    fields: tuple[str, ...] = ()
    """of the configuration, likewise"""


def run_checks(draft: Draft, tell: bool = True) -> Found:
    """Go through them all. Nothing is written.

    With `tell`, what is wrong is printed as soon as the last checks, which take seconds, are all that is waited for.
    """
    found = Found(draft.config, draft.wrong)
    for error in draft.problems:
        found.note("configuration", error)
    # It takes seconds to start, in which the others look at the rest.
    with weights.Looking() as looking:
        for check in (*CHECKS, Check("weights", lambda found: _weights(found, looking, tell)), *AFTERWARDS):
            if found.failed.intersection(check.needs) or found.wrong.intersection(check.fields):
                found.failed.add(check.name)
                continue
            with found.noting(check.name):
                check.hold(found)
    return found


def require_all(draft: Draft) -> Found:
    """Raise UserError for what is wrong, UserErrors where that is more than one thing."""
    found = run_checks(draft)
    found.raise_any()
    return found


def _work_dir(found: Found) -> None:
    work_dir = Path(found.config.work_dir)
    check_writable(work_dir)
    run_file.require_no_loop(work_dir)
    require_open(work_dir)


def _formats(found: Found) -> None:
    for name in (found.config.export or "").split(",") if found.config.export is not None else ():
        with found.noting("exports"):
            exports.chosen(name)
    # One that is named twice.
    found.formats = exports.chosen(found.config.export)


def _zero3(found: Found) -> None:
    """ZeRO-3 without DeepSpeed, or settings that are none."""
    if "zero3_config" not in found.wrong:
        with found.noting("zero3"):
            zero3_settings.read_settings(found.config.zero3_config)
    if found.config.zero3 == "on":
        zero3_settings.require_installed()


def _sources(found: Found) -> None:
    """The files that flags of sources of reward name: templates, rules.

    Where --rewards is wrong, all that are named: one of its sources may be meant to read each.
    """
    config = found.config
    for source in SOURCES if "rewards" in found.wrong else config.stages.sources:
        flags, given = SOURCES[source].flags, SOURCES[source].given
        if found.wrong.intersection(given):
            found.failed.add("sources")
        elif flags is not None and all(getattr(config, name) is not None for name in given):
            with found.noting("sources"):
                load(flags)(config)


def _dataset(found: Found) -> None:
    """It opens, has the columns of every question, and ids that tell rows apart."""
    found.questions = open_questions(found.config, found.further_columns)


def _columns(found: Found) -> None:
    with found.noting("columns"):
        require_images(found.questions, found.config)
    for flags in found.config.source_flags.values():
        found.warnings += flags.warnings
        with found.noting("columns"):
            require_columns(found.questions, flags)


def _strategy(found: Found) -> None:
    strategies.require_strategy(found.config.strategy)


def _rank_by(found: Found) -> None:
    chosen_rewards(found.config.rank_by, found.config.stages)


def _answers(found: Found) -> None:
    """The file itself; what the models say of it, weights.py holds against it."""
    if found.config.answers is not None:
        # Of the file as a whole, the type of ids says nothing.
        GivenFile(found.config.answers, found.questions.idx_type if found.questions else pa.int64())


def _answers_rows(found: Found) -> None:
    config = found.config
    if config.answers is not None:
        found.given = check_answers(config.answers, found.questions)
        require_usable(found.given, config.answers, config.least_answers, config.instruct_model_path is not None)
        found.warnings += found.given.warnings(config)


def _same_run(found: Found) -> None:
    """Settings, questions and given answers that units of the work_dir were computed from; models: see heavy.py."""
    config, work_dir = found.config, Path(found.config.work_dir)
    bound = found.known(run_file.bound_settings(config, len(found.questions), None))
    with found.noting("same_run"):
        if run_file.has_units(work_dir):
            # Another number says more than another hash.
            limit.require_as_many(work_dir, run_file.read(work_dir), found.questions)
            limit.require_reach(work_dir, bound.get("unit_size", 1), len(found.questions))
            answers = None if "answers" in found.failed else config.answers
            with telling_unread(work_dir, "dataset and answers", found.warnings):
                bound |= run_file.content(RememberedHashes(work_dir), found.questions, answers)
    run_file.require_same(work_dir, bound, config.stages)


def _first_rows(found: Found) -> None:
    """Raise UserError where none of them can be used; where some cannot, a warning says why."""
    config, questions = found.config, found.questions
    reasons, pictures, texts, blank = [], [], [], 0
    with ImageWorkers() as workers:
        for question in questions.rows(range(min(LOOKED_AT, len(questions)))):
            try:
                read_images(question, config.max_megapixels, workers.decode)
            except (BadRow, BadImage) as problem:
                reasons.append(str(problem))
            else:
                pictures.append(sum(map(len, question.images)))
                texts.append(len((question.question or "").encode()))
                blank += not (question.question or "").strip()
    looked_at = len(reasons) + len(texts)
    mean = lambda values: sum(values) / max(1, len(values))  # noqa: E731
    found.first_rows = FirstRows(looked_at, tuple(reasons), mean(pictures), mean(texts))
    if config.continue_from_stage > stages.SAMPLE:
        return
    if looked_at and not texts:
        raise refusal(reasons)
    if blank:
        found.warnings.append(
            f"{blank} of the first {plural(looked_at, 'row')}: the question is blank; it is asked all the same"
        )
    if reasons:
        told, _ = most_frequent(reasons)
        found.warnings.append(f"{len(reasons)} of the first {looked_at} rows cannot be used; most often: {told}")


def _checkpoints(found: Found) -> None:
    """Their files, as far as they can be seen without torch. A hub id is fetched.

    Where --rewards is wrong, the models that are named: one of its sources may be meant to run each.
    """
    config = found.config
    for role in (*COMPARED, *JUDGES) if "rewards" in found.wrong else config.roles:
        if f"{role}_model_path" in found.wrong or getattr(config, f"{role}_model_path") is None:
            continue
        with found.noting("checkpoints"), naming_flag(config, role):
            folder = folder_of(config, role)
            found.families[role] = check_folder(folder, getattr(config, f"{role}_model_name"))
            found.folders[role] = folder


def _weights(found: Found, looking: "weights.Looking", tell: bool) -> None:
    """Names and shapes of weights, tokenizers, devices, and what is made of them."""
    if tell and looking.is_slow:
        for problem in found.problems:
            output.tell(problem.error)
    found.heavy = looking.at(weights.Wanted.of(found))
    for check, message in found.heavy["problems"]:
        found.note(check, message if isinstance(message, UserError) else UserError(message))
    found.warnings += found.heavy["warnings"]


def _possible_exports(found: Found) -> None:
    family = found.families.get(stages.TRAINED)
    if family is None and stages.TRAINED in found.config.roles:
        return
    for name in found.formats:
        with found.noting("exports"):
            exports.require_possible([name], family, found.config.stages.by_name)


def _disk(found: Found) -> None:
    """A run that certainly has no room is refused; one that may have too little is warned of."""
    folder = nearest_folder(Path(found.config.work_dir))
    free, left = shutil.disk_usage(folder).free, sizes.units_left(found)
    least = sum(map(len, left.values())) * sizes.LEAST_UNIT_BYTES
    if least > free:
        raise UserError(
            f'work_dir "{found.config.work_dir}": the units of this run take {megabytes(least)} at the very least'
            f"{compared(least, folder)}; make room, or choose another work_dir"
        )
    most = sum(size for _, size in sizes.bytes_by_stage(found))
    if most > free:
        found.warnings.append(
            f"up to {sizes.told(most)} may be written, and {sizes.told(free)} are free on the file system of "
            f'"{folder}": up to {sizes.told(most - free)} are missing'
        )


def _together(found: Found) -> None:
    """Settings that change nothing beside others."""
    config, warn = found.config, found.warnings.append
    default = RunConfig.draft({}).config
    judged = set(config.stages.sources)
    for name, source in (("yesno_template", "yesno"), ("critic_template", "critic"), ("rule", "rule")):
        if getattr(config, name) is not None and source not in judged:
            warn(f"{name} has no effect: {source} is not among --rewards")
    for role in (*COMPARED, *JUDGES):
        if getattr(config, f"{role}_model_path") is not None and role not in config.roles:
            warn(f"{role}_model_path has no effect: no stage of --rewards {config.rewards} runs that model")
    found.warnings += without_pairs(config)
    drawn = [name for name in ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "sample_k")
             if getattr(config, name) != getattr(default, name)]  # fmt: skip
    if config.answers is not None and drawn:
        verb = "has" if len(drawn) == 1 else "have"
        warn(f"{', '.join(drawn)} {verb} no effect on the answers of --answers, which are not drawn")
    found.warnings += without_effect(config, config.stages).values()
    found.warnings += found.questions.warnings if found.questions is not None else ()
    if config.zero3_config is not None and config.zero3 == "off":
        warn("zero3_config has no effect: zero3 is off")
    if config.exif == "ignore" and found.questions is not None and not found.questions.has_images:
        warn("exif has no effect: the dataset has no images")
    if config.export is not None and config.stop_after_stage < stages.PAIR:
        warn(f"export has no effect: this start stops after stage {config.stop_after_stage}, before pairs are made")


def _earlier_stages(found: Found) -> None:
    """A warning where stages before --continue_from_stage are not complete: `run` would end with 3."""
    config, rows = found.config, sizes.unit_rows(found)
    found.warnings += incomplete(
        Path(config.work_dir), config.stages, config.continue_from_stage, rows, sizes.mine(found)
    )


# In the order in which a person is told; then comes "weights".
CHECKS = (
    Check("work_dir", _work_dir, fields=("work_dir",)),
    Check("exports", _formats, fields=("export",)),
    Check("zero3", _zero3),
    Check("sources", _sources),
    Check("dataset", _dataset, fields=("dataset_path", "columns", "question", "dataset_split")),
    Check("columns", _columns, needs=("dataset", "sources")),
    Check("strategy", _strategy, fields=("strategy",)),
    Check("rank_by", _rank_by, fields=("rank_by", "rewards", "yesno_template", "rule")),
    Check("answers", _answers, fields=("answers",)),
    Check("answers_rows", _answers_rows, needs=("dataset", "answers"), fields=("answers", "rank", "limit")),
    Check("same_run", _same_run, needs=("work_dir", "dataset", "sources"),
          fields=("limit", "answers", "sampler", "rewards")),
    Check("first_rows", _first_rows, needs=("dataset",), fields=("max_megapixels", "exif", "image_root")),
    Check("checkpoints", _checkpoints),
)  # fmt: skip
AFTERWARDS = (
    Check("possible_exports", _possible_exports, fields=("export", "rewards")),
    Check("disk", _disk, needs=("work_dir", "dataset", "sources", "first_rows"),
          fields=("limit", "unit_size", "sample_k", "max_new_tokens", "num_shards", "shard_index", "rewards")),
    Check("together", _together, fields=("rewards",)),
    Check("earlier_stages", _earlier_stages, needs=("work_dir", "dataset"),
          fields=("continue_from_stage", "limit", "unit_size", "num_shards", "shard_index", "rewards")),
)  # fmt: skip
