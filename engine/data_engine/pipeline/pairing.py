"""The pairs of a run from what is stored of it: the units of every stage in, candidate pairs with their statuses out.

No model, no question and no picture is read. Memory is bounded: a few units at a time, and a few bytes of each
candidate pair.
"""

import functools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_engine import schemas
from data_engine.pipeline.pair_settings import AUTO, Settings
from data_engine.pipeline.rewarded import RewardedUnit, Stored, read_rewarded, scored_rows
from data_engine.preferences import strategies
from data_engine.preferences.answers import REASONS, Answers, places_of, why_not_ranked
from data_engine.preferences.candidates import NO_SOURCE, CandidateTable
from data_engine.preferences.funnel import Funnel
from data_engine.preferences.length_alpha import LengthBalance
from data_engine.preferences.reward_totals import RewardTotals, uneven
from data_engine.preferences.word_count import count_words
from data_engine.processes.counting import counting
from data_engine.questions.prefetch import ahead
from data_engine.stages import REWARD
from data_engine.store.room import counted

log = logging.getLogger(__name__)

# Units that are read, and checked, while others are paired.
UNITS_AHEAD = 2


@dataclass(frozen=True)
class Paired:
    """What came of a pairing."""

    candidates: CandidateTable
    funnel: Funnel
    metadata: dict[str, str]
    """of the file of pairs, but for the funnel"""

    def count(self) -> None:
        """Tell the funnel of the statuses, which are final by now."""
        counts = self.candidates.counts()
        self.funnel.candidate_pairs = counts.total()
        self.funnel.dropped = Counter({name: counts[name] for name in self.candidates.filter_names})
        if counts[NO_SOURCE]:
            self.funnel.dropped[NO_SOURCE] = counts[NO_SOURCE]

    def write(self, path: Path) -> None:
        """Write the file of pairs."""
        metadata = {**self.metadata, "funnel": self.funnel.to_json()}
        with pq.ParquetWriter(path, self.candidates.schema.with_metadata(metadata)) as writer:
            for table in self.candidates.tables():
                writer.write_table(table.replace_schema_metadata(metadata))


def paired(
    stored: Stored, settings: Settings, scratch: Path, add_row: Callable[[Mapping], None] | None = None
) -> Paired:
    """Pair the answers of every unit, and run the filters. The candidates lie in the folder `scratch`.

    `add_row` is told each answer with its rewards and places. Raises what read_rewarded raises.
    """
    rule, metadata = settings.pair_rule, {"settings": settings.to_json()}
    if settings.length_alpha == AUTO:
        rule = settings.with_alpha(_balanced_alpha(stored, settings))
        metadata["length_alpha"] = json.dumps(rule.length_alpha)
    metadata["same_tokenizer"] = json.dumps(stored.same_tokenizer)
    metadata["rewards"] = json.dumps(",".join(stored.run_stages.sources))
    metadata["bound"] = json.dumps({name: stored.bound.get(name) for name in _shaping_rewards(stored)})
    funnel, which = Funnel(), settings.answer_rule(stored.markers)
    totals = {name: RewardTotals() for name in stored.run_stages.summed_up(settings.rank_by)}
    schema = schemas.pairs(stored.idx_type, stored.rewards)
    candidates = CandidateTable(scratch / "candidates.parquet", schema, settings.seed, settings.filter_rule)
    units_done = 0
    # Half of what is written: the file of pairs follows, with the same rows.
    with counted(scratch, lambda: units_done / (2 * stored.num_units)), candidates:
        for unit in _units(stored, settings):
            funnel.quarantined += unit.num_left_out
            funnel.turned += unit.num_turned
            for name, total in totals.items():
                total.add(unit.rewards[schemas.reward_name(name)].filled(np.nan), [start for _, start, _ in unit.spans])
            for answers in unit.questions():
                reasons = why_not_ranked(answers, which)
                ranked = places_of(reasons)
                _count_answers(funnel, reasons, len(ranked))
                if add_row:
                    for row in scored_rows(_keys(answers), answers, reasons, settings.names, rule.length_alpha):
                        add_row(row)
                candidates.add(answers.idx, strategies.pair_up(answers, ranked, settings.names, rule, count_words))
            units_done += 1
    candidates.filter_dataset()
    for told in uneven(totals, stored.run_stages.aspects, settings.rank_by):
        log.warning("%s", told)
    reasons = funnel.not_ranked
    funnel.not_ranked = Counter({name: reasons[name] for name in REASONS if reasons[name]})
    metadata["reward_totals"] = json.dumps(
        {name: total.means() | {"ranks": name in settings.rank_by} for name, total in totals.items()}
    )
    return Paired(candidates, funnel, metadata)


def _shaping_rewards(stored: Stored) -> list[str]:
    """Names of what the units of rewards are bound to."""
    stages = [stage for stage in stored.run_stages.by_name.values() if stage.step == REWARD]
    return sorted({name for stage in stages for name in stage.bound})


def _units(stored: Stored, settings: Settings) -> Iterator[RewardedUnit]:
    """Every unit with its rewards, counted on stderr. A thread reads the next ones while one is paired."""
    read = functools.partial(read_rewarded, stored, beta=settings.beta)
    return counting(ahead(read, range(stored.num_units), UNITS_AHEAD, workers=1), stored.num_units, "units")


def _balanced_alpha(stored: Stored, settings: Settings) -> float:
    """What --length_alpha auto comes to for these answers."""
    balance, which = LengthBalance(len(settings.names)), settings.answer_rule(stored.markers)
    for unit in _units(stored, settings):
        for answers in unit.questions():
            ranked = places_of(why_not_ranked(answers, which))
            if ranked:
                columns = [[answers.rewards[name][place] for place in ranked] for name in settings.names]
                balance.add(columns, [count_words(answers.texts[place]) for place in ranked])
    return balance.alpha(settings.pair_rule)


def _count_answers(funnel: Funnel, reasons: Sequence[str | None], num_ranked: int) -> None:
    funnel.answers += len(reasons)
    funnel.ranked += num_ranked
    if num_ranked < len(reasons):
        funnel.not_ranked.update(reason for reason in reasons if reason is not None)


def _keys(answers: Answers) -> Iterator[dict]:
    for index, text in zip(answers.indexes, answers.texts, strict=True):
        yield {"idx": answers.idx, "sample_index": index, "answer": text}
