"""Progress as one JSON object, for programs; docs/watching.md has its keys, which stay."""

import json
from datetime import UTC, datetime

from data_engine.watching.progress import WRITTEN, Progress, RankProgress, StageProgress, Warned


def as_json(progress: Progress) -> str:
    """One line. Numbers are numbers, what is unknown is null, and all but ASCII is escaped."""
    return json.dumps(
        {
            "work_dir": progress.work_dir,
            "time": _time(progress.time),
            "questions": progress.num_questions,
            "unit_size": progress.unit_size,
            "units": progress.num_units,
            "stages": [_stage(stage) for stage in progress.stages],
            "seconds_left": _rounded(progress.seconds_left),
            "seconds_left_at_least": _rounded(progress.seconds_left_at_least),
            "ranks": [_rank(rank) for rank in progress.ranks],
            "warnings": [_warning(one) for one in progress.warnings],
            "num_warnings": progress.num_warnings,
            "pairs": {"state": progress.pairs, "written": progress.pairs == WRITTEN},
            "done": progress.is_done,
        },
        allow_nan=False,
    )


def _stage(stage: StageProgress) -> dict:
    pace = stage.pace if stage.left else None
    return {
        "name": stage.name,
        "done": stage.done,
        "total": stage.total,
        "answers_per_s": _rounded(pace and pace.answers_a_second),
        "seconds_left": _rounded(pace.seconds_left(stage.left) if pace else None if stage.left else 0.0),
        "ranks": stage.num_ranks if stage.left else 0,
    }


def _rank(rank: RankProgress) -> dict:
    return {
        "rank": rank.rank,
        "host": rank.host,
        "pid": rank.pid,
        "shard": rank.shard and {"index": rank.shard[0], "of": rank.shard[1]},
        "state": rank.state,
        "stage": rank.stage,
        "units": list(rank.units),
        "seconds_since_sign": _rounded(rank.age_s),
        "exit_code": rank.exit_code,
        "error": rank.error,
        "log": rank.log,
    }


def _warning(one: Warned) -> dict:
    return {"time": _time(one.time), "rank": one.rank, "level": one.level, "message": one.message}


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds")


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)
