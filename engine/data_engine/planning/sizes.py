"""Bytes and tokens of a run, by stage: upper bounds by arithmetic, before anything was measured. No torch here.

A bound holds for answers as long as max_new_tokens; most answers are shorter, and `validate --measure` says by how
much. Answers of --answers are as many and as long as their file says.
"""

import contextlib
from pathlib import Path
from typing import NamedTuple

from data_engine import stages
from data_engine.errors import UserError
from data_engine.job import limit, run_file
from data_engine.planning.found import Found
from data_engine.preferences import filters
from data_engine.reporting.choice import NUM_PAIRS
from data_engine.rewards.critic import CriticTemplate
from data_engine.stages import Stage
from data_engine.store import units

# A file of a unit takes a block of the file system, however little is in it.
LEAST_UNIT_BYTES = 4096
# Of a unit's file besides its rows: schema, footer, seal, and what was left out.
UNIT_BYTES = 8192
# Of an answer besides what its tokens take: idx, sample_index, sums.
ANSWER_BYTES = 64
# Text of a token. English has 4 bytes a token; Chinese has 3 to 6.
TOKEN_TEXT_BYTES = 6
ID_BYTES = LOGP_BYTES = 4
# Of a pair besides its texts and pictures: rewards, lengths, status.
PAIR_BYTES = 256
# The report: what each has, and the most that it weighs, which reporting/gallery.py keeps to.
REPORT_BYTES, MOST_REPORT_BYTES = 500_000, 40_000_000
# In it, a token's heat, a pair besides its answers, and a thumbnail of 256 pixels, as base64.
HEAT_BYTES, SHOWN_PAIR_BYTES, THUMBNAIL_BYTES = 12, 600, 22_000


def unit_rows(found: Found) -> list[range]:
    """The rows of each unit of the dataset."""
    count = len(found.questions)
    size = units.auto_unit_size(count)
    # A run.json that is none is told by a check of its own.
    with contextlib.suppress(UserError):
        size = run_file.unit_size(found.config, count)
    return units.split_units(count, size)


def mine(found: Found) -> range:
    """Numbers of the units of this job's shard."""
    return range(found.config.shard_index, len(unit_rows(found)), found.config.num_shards)


def todo(found: Found) -> list[Stage]:
    """The stages that this start computes."""
    return found.config.stages.between(found.config.continue_from_stage, found.config.stop_after_stage)


def units_left(found: Found) -> dict[str, list[int]]:
    """Of each stage, the units of this shard that are not published, or that a smaller --limit has cut short."""
    work_dir, wanted = Path(found.config.work_dir), set(mine(found))
    again = limit.cut_short(work_dir, unit_rows(found))
    return {
        stage.name: sorted(wanted - units.published(work_dir, stage.name) | wanted & again) for stage in todo(found)
    }


def questions_in(found: Found, numbers: list[int]) -> int:
    rows = unit_rows(found)
    return sum(len(rows[number]) for number in numbers)


class Answers(NamedTuple):
    """Those of a question, at most; of given ones the mean of their file."""

    count: float
    tokens: float
    """of one"""
    text_bytes: float
    """of one"""

    @classmethod
    def of(cls, found: Found) -> "Answers":
        config, given = found.config, found.given
        if given is None:
            return cls(config.sample_k, config.max_new_tokens, config.max_new_tokens * TOKEN_TEXT_BYTES)
        # Of ids alone, a tokenizer makes the text.
        text = given.text_bytes + (given.most_tokens * TOKEN_TEXT_BYTES if given.ids_alone else 0)
        return cls(given.rows / len(found.questions), given.most_tokens / given.rows, text / given.rows)


def answer_bytes(found: Found, stage: Stage) -> float:
    """Of an answer, in the file of a stage."""
    answers = Answers.of(found)
    if stage.step == stages.SAMPLE:
        return ANSWER_BYTES + answers.text_bytes + answers.tokens * ID_BYTES
    if stage.name == "critic":
        # A verdict, as long as the template lets it be.
        template: CriticTemplate = found.config.source_flags["critic"].value
        return ANSWER_BYTES + template.max_new_tokens * TOKEN_TEXT_BYTES
    return ANSWER_BYTES + (answers.tokens * LOGP_BYTES if stage.name.endswith("_logps") else 0)


def candidates_a_question(found: Found) -> int:
    """At most: what a rank's top with a rank's bottom makes."""
    config = found.config
    most = config.sample_k if found.given is None else found.given.most
    return config.rank**2 if config.strategy == "cross" else most**2


def pairs_a_question(found: Found) -> int:
    """At most: max_pairs, and no more than the candidates."""
    most = found.config.max_pairs
    return min(filters.MAX_PAIRS_PER_IDX if most is None else most, candidates_a_question(found))


def bytes_by_stage(found: Found) -> list[tuple[str, int]]:
    """What is still to be written, in bytes, by stage: units, then pairs, dataset and exports; at most."""
    config, left, answers = found.config, units_left(found), Answers.of(found)
    sizes = []
    for stage in todo(found):
        rows = questions_in(found, left[stage.name]) * answers.count * answer_bytes(found, stage)
        sizes.append((stage.name, int(rows) + len(left[stage.name]) * UNIT_BYTES))
    if config.stop_after_stage < stages.PAIR:
        return sizes
    pairs = len(found.questions) * pairs_a_question(found)
    first = found.first_rows
    candidates = len(found.questions) * candidates_a_question(found)
    texts = 2 * answers.text_bytes + PAIR_BYTES
    row = texts + first.text_bytes + first.picture_bytes
    sizes += [("pairs", int(candidates * texts)), ("dataset", int(pairs * row))]
    sizes += [(f"export {name}", int(pairs * row)) for name in found.formats]
    return [*sizes, ("report", _report_bytes(len(found.questions), candidates, answers))]


def _report_bytes(questions: int, candidates: int, answers: Answers) -> int:
    shown = min(NUM_PAIRS, candidates)
    pair = SHOWN_PAIR_BYTES + 2 * (answers.text_bytes + answers.tokens * HEAT_BYTES)
    return int(min(MOST_REPORT_BYTES, REPORT_BYTES + shown * pair + min(shown, questions) * THUMBNAIL_BYTES))


def told(size: float) -> str:
    """Bytes for a person to read."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
