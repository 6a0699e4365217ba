"""Bytes and tokens of a run, by stage: upper bounds by arithmetic, before anything was measured. No torch here.

A bound holds for answers as long as max_new_tokens; most answers are shorter, and `validate --measure` says by how
much.
"""

from pathlib import Path

from data_engine import stages
from data_engine.planning.found import Found
from data_engine.preferences import filters
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
# The report: what each has; the most pairs that it shows, and the most that it weighs, as reporting/ has them.
REPORT_BYTES, REPORT_PAIRS, MOST_REPORT_BYTES = 500_000, 2000, 40_000_000
# In it, a token's heat, a pair besides its answers, and a thumbnail of 256 pixels, as base64.
HEAT_BYTES, SHOWN_PAIR_BYTES, THUMBNAIL_BYTES = 12, 600, 22_000


def unit_rows(found: Found) -> list[range]:
    """The rows of each unit of the dataset."""
    count = len(found.questions)
    return units.split_units(count, found.config.unit_size or units.auto_unit_size(count))


def mine(found: Found) -> range:
    """Numbers of the units of this job's shard."""
    return range(found.config.shard_index, len(unit_rows(found)), found.config.num_shards)


def todo(found: Found) -> list[Stage]:
    """The stages that this start computes."""
    return found.config.stages.between(found.config.continue_from_stage, found.config.stop_after_stage)


def units_left(found: Found) -> dict[str, list[int]]:
    """Of each stage, the units of this shard that are not published yet."""
    work_dir, wanted = Path(found.config.work_dir), mine(found)
    return {stage.name: sorted(set(wanted) - units.published(work_dir, stage.name)) for stage in todo(found)}


def questions_in(found: Found, numbers: list[int]) -> int:
    rows = unit_rows(found)
    return sum(len(rows[number]) for number in numbers)


def answer_bytes(found: Found, stage: Stage, tokens: float) -> float:
    """Of an answer of so many tokens, in the file of a stage."""
    if stage.step == stages.SAMPLE:
        return ANSWER_BYTES + tokens * (TOKEN_TEXT_BYTES + ID_BYTES)
    by_token = stage.name.endswith("_logps")
    # A critic writes a verdict as long as an answer may be.
    written = LOGP_BYTES if by_token else TOKEN_TEXT_BYTES if stage.name == "critic" else 0
    return ANSWER_BYTES + tokens * written


def pairs_a_question(found: Found) -> int:
    """At most: max_pairs, and no more than a rank's top with a rank's bottom makes."""
    config = found.config
    most = config.max_pairs if config.max_pairs is not None else filters.MAX_PAIRS_PER_IDX
    return min(most, config.rank**2 if config.strategy == "cross" else config.sample_k**2)


def bytes_by_stage(found: Found, tokens: float | None = None) -> list[tuple[str, int]]:
    """What is still to be written, in bytes, by stage: units, then pairs, dataset and exports; at most.

    `tokens` is the mean length of an answer, where it was measured.
    """
    config, left = found.config, units_left(found)
    tokens = config.max_new_tokens if tokens is None else tokens
    sizes = []
    for stage in todo(found):
        answers = questions_in(found, left[stage.name]) * config.sample_k
        rows = answers * answer_bytes(found, stage, tokens)
        sizes.append((stage.name, int(rows) + len(left[stage.name]) * UNIT_BYTES))
    if config.stop_after_stage < stages.PAIR:
        return sizes
    pairs = len(found.questions) * pairs_a_question(found)
    first = found.first_rows
    candidates = len(found.questions) * (config.rank**2 if config.strategy == "cross" else config.sample_k**2)
    texts = 2 * tokens * TOKEN_TEXT_BYTES + PAIR_BYTES
    row = texts + first.text_bytes + first.picture_bytes
    sizes += [("pairs", int(candidates * texts)), ("dataset", int(pairs * row))]
    sizes += [(f"export {name}", int(pairs * row)) for name in found.formats]
    return [*sizes, ("report", _report_bytes(len(found.questions), candidates, tokens))]


def _report_bytes(questions: int, candidates: int, tokens: float) -> int:
    shown = min(REPORT_PAIRS, candidates)
    pair = SHOWN_PAIR_BYTES + 2 * tokens * (TOKEN_TEXT_BYTES + HEAT_BYTES)
    return int(min(MOST_REPORT_BYTES, REPORT_BYTES + shown * pair + min(shown, questions) * THUMBNAIL_BYTES))


def told(size: float) -> str:
    """Bytes for a person to read."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
