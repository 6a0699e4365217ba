"""What a run will take, by stage: units, questions, tokens and bytes that are still to be made. No torch here."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from data_engine.planning import sizes
from data_engine.planning.found import Found
from data_engine.plural import plural
from data_engine.store import units
from data_engine.store.room import nearest_folder


@dataclass(frozen=True)
class StagePlan:
    """One line of the plan; None where a figure has no meaning for the stage."""

    name: str
    units: int | None = None
    """still to be computed by this start"""
    published: int | None = None
    """units of this shard that are there already"""
    questions: int | None = None
    """in the units that are left"""
    prompt_tokens: int | None = None
    """of these questions, pictures included, by the first rows' mean; a question's prompt is run once"""
    answer_tokens: int | None = None
    """of their answers, at most: max_new_tokens each; of given ones what their file allows"""
    bytes: int = 0
    """on disk, at most"""


@dataclass(frozen=True)
class RunPlan:
    """The plan of a start."""

    stages: list[StagePlan]
    num_questions: int
    unit_size: int
    world_size: int
    total_bytes: int
    free_bytes: int
    """of the file system of the work_dir"""
    memory: dict | None
    """of the models: see models.sharding.placement.Decision"""

    def as_json(self) -> dict:
        return asdict(self)


def plan_of(found: Found, world_size: int) -> RunPlan | None:
    """None where the configuration is not good enough to say."""
    config = found.config
    checks = {"work_dir", "dataset", "sources", "first_rows"}
    fields = {"limit", "unit_size", "sample_k", "max_new_tokens", "num_shards", "shard_index", "rewards", "work_dir",
              "rank"}  # fmt: skip
    if checks & found.failed or fields & found.wrong or found.first_rows is None:
        return None
    left, bytes_of, answers = sizes.units_left(found), dict(sizes.bytes_by_stage(found)), sizes.Answers.of(found)
    rows = []
    for stage in sizes.todo(found):
        numbers = left[stage.name]
        questions = sizes.questions_in(found, numbers)
        prompt = found.heavy.get("prompts", {}).get(stage.model or "")
        written = round(questions * answers.count * answers.tokens)
        rows.append(
            StagePlan(
                stage.name, len(numbers), len(sizes.mine(found)) - len(numbers), questions,
                None if prompt is None else round(questions * prompt), written if stage.model else None,
                bytes_of[stage.name],
            )
        )  # fmt: skip
    names = {stage.name for stage in sizes.todo(found)}
    rows += [StagePlan(name, bytes=size) for name, size in bytes_of.items() if name not in names]
    free = shutil.disk_usage(nearest_folder(Path(config.work_dir))).free
    unit_size = max(map(len, sizes.unit_rows(found)), default=0)
    total = sum(bytes_of.values())
    return RunPlan(rows, len(found.questions), unit_size, world_size, total, free, found.heavy.get("memory"))


def empty_shards(found: Found, num_shards: int, shard_index: int | None = None) -> str | None:
    """A warning where there are more shards than units that this start could compute."""
    if not sizes.todo(found):
        return None
    told = units.told_of_empty_shards(len(sizes.unit_rows(found)), num_shards, shard_index)
    return told if told is None or _is_bound(found) else f"{told}, or lower --unit_size"


def idle_ranks(found: Found, world_size: int) -> str | None:
    """A warning where there are more ranks than units."""
    left = [len(numbers) for numbers in sizes.units_left(found).values()]
    if not left or not max(left) or max(left) >= world_size:
        return None
    told = f"{world_size} ranks have {plural(max(left), 'unit')} to share: {world_size - max(left)} will be idle"
    return told if _is_bound(found) else f"{told}; lower --unit_size"


def _is_bound(found: Found) -> bool:
    """Whether there are units, which are bound to their size."""
    return any(units.published(Path(found.config.work_dir), name) for name in found.config.stages.by_name)
