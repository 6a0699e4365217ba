"""A plan and a measurement as lines of text."""

from data_engine.duration import duration
from data_engine.planning.plan import RunPlan, StagePlan
from data_engine.planning.sizes import told
from data_engine.plural import plural
from data_engine.reporting.timings import aligned

HEADING = ("plan", "units", "done", "questions", "prompt tokens", "answer tokens", "on disk")


def plan_lines(plan: RunPlan) -> list[str]:
    """The table of the plan, and what it is held against."""
    rows = [HEADING, *map(_row, plan.stages)]
    rows.append(("in all", "", "", f"{plan.num_questions:,}", "", "", f"up to {told(plan.total_bytes)}"))
    lines = aligned(rows)
    lines.append(f"units of {plural(plan.unit_size, 'question')}; {told(plan.free_bytes)} are free where work_dir is")
    if plan.memory is not None:
        lines.append(plan.memory["told"])
    return lines


def _row(stage: StagePlan) -> tuple[str, ...]:
    numbers = [_number(value) for value in (stage.units, stage.published, stage.questions, stage.prompt_tokens)]
    tokens = "" if stage.answer_tokens is None else f"up to {stage.answer_tokens:,}"
    return (stage.name, *numbers, tokens, f"up to {told(stage.bytes)}")


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def measured_lines(measured: dict) -> list[str]:
    """Time by stage for the ranks asked for, and for one where those are more."""
    ranks, kind = measured["world_size"], measured["kind"]
    counts = {f"{ranks} ranks": "seconds", "1 rank": "seconds_1_rank"} if ranks > 1 else {"1 rank": "seconds"}
    rows = [("measured", *counts, f"{kind}-hours", "tokens an answer")]
    for line in (*measured["stages"], {"name": "in all"} | measured):
        times, tokens = (duration(line[key]) for key in counts.values()), line.get("tokens_an_answer")
        hours = f"{line['device_seconds'] / 3600:.3f}"
        rows.append((line["name"], *times, hours, "" if tokens is None else f"{tokens:.1f}"))
    low, high = measured["seconds_range"]
    return [*aligned(rows), f"by {measured['told']}: {duration(low)} to {duration(high)} in all"]
