"""What a page is about, for its top: models, dataset and pairing by name; run.json and a file of pairs in, rows out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from data_engine import stages
from data_engine.config_checks import has_effect
from data_engine.of_pairing import FLAGS
from data_engine.plural import plural
from data_engine.preferences import filters, strategies
from data_engine.preferences.funnel import Funnel
from data_engine.preferences.pairs_metadata import metadata_of
from data_engine.reporting import charts
from data_engine.reporting.pair_numbers import RANK_BY, SIDES, WORDS, PairNumbers

Rows = list[tuple[str, list[str]]]
"""a name, and lines about it"""
# The setting that a filter goes by, where it is not called as the filter.
_LIMITS = {"per_idx": "max_pairs"}
_DEFAULTS = {"max_pairs": filters.MAX_PAIRS_PER_IDX}
# Flags of a pairing that are told elsewhere than with the strategy.
_TOLD_APART = {"rank_by", "strategy", "length_alpha", *(field.name for field in fields(filters.FilterRule))}


def result_rows(numbers: PairNumbers, funnel: Funnel, ended: Mapping[str, int]) -> Rows:
    """What a reader should know first: chosen and rejected answers of the kept pairs, and what was left out or cut.

    `ended`: all answers by why they ended.
    """
    kept, shown, lines = numbers.kept, numbers.first_reward(), []
    values = [charts.drawn_of(numbers.columns[f"{side}_{shown}"][kept]) for side in SIDES] if shown else []
    if values and all(map(len, values)):
        lines += [f"{numbers.called(shown)}: {_sides(charts.signed(charts.mean_of(own)) for own in values)}"]
    if len(kept):
        lines += [f"words: {_sides(f'{numbers.columns[name][kept].mean():.1f}' for name in WORDS)}"]
    without, cut, answers = funnel.quarantined, ended.get("length", 0), sum(ended.values())
    rows = [
        ("Kept pairs", lines),
        ("Left out", [f"{without:,} of {plural(funnel.questions, 'question')}"] if without else []),
        ("Cut short", [f"{cut:,} of {plural(answers, 'answer')}, by --max_new_tokens"] if cut else []),
    ]
    return [(name, lines) for name, lines in rows if lines]


def _sides(told: Iterable[str]) -> str:
    return ", ".join(f"{side} {value}" for side, value in zip(SIDES, told, strict=True)) + " on average"


def run_rows(path: Path, run_file: Mapping, num_questions: int) -> Rows:
    """Models, dataset and answers of the run whose pairs are in the file `path`; what is not known is not named."""
    sources = metadata_of(path, "rewards").get("rewards") or run_file.get("config", {}).get("rewards") or stages.DEFAULT
    rows = [
        ("Instruct model", _lines(_model(stages.TRAINED, run_file))),
        ("Reward", [_source(name.strip(), run_file) for name in sources.split(",")]),
        ("Dataset", _lines(_dataset(run_file))),
        ("Questions", [_answers(run_file, num_questions)]),
    ]
    return [(name, lines) for name, lines in rows if lines]


def pairing_rows(path: Path, run_file: Mapping, funnel: Funnel) -> Rows:
    """How the pairs of the file `path` were made, when, and by which version."""
    told = metadata_of(path, "settings", "rewards", "length_alpha")
    settings, rewards = told.get("settings", {}), told.get("rewards", "implicit").split(",")
    ranking = settings.get("rank_by", RANK_BY).replace(",", ", ")
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
    version = run_file.get("versions", {}).get("data_engine")
    return [
        ("Pairing", [", ".join(_strategy(settings, rewards)), f"ranked by {ranking}"]),
        ("Filters", [", ".join(_filters(settings, funnel))]),
        ("Length alpha", [_alpha(settings.get("length_alpha"), told.get("length_alpha"))]),
        ("Pairs written", [f"{written}{f', in a run of data_engine {version}' if version else ''}"]),
    ]


def _lines(told: str | None) -> list[str]:
    return [told] if told else []


def _noted(text: str, notes: list[str]) -> str:
    return f"{text} ({', '.join(notes)})" if notes else text


def _model(role: str, run_file: Mapping) -> str | None:
    config = run_file.get("config", {})
    path, revision = (config.get(f"{role}_model_{name}") for name in ("path", "revision"))
    family = run_file.get("models", {}).get(role, {}).get("family")
    return path and _noted(path, [*_lines(family), *([f"revision {revision}"] if revision else [])])


def _source(name: str, run_file: Mapping) -> str:
    """A source of reward with its own models, or else that which answers, and the files that it is given."""
    if name not in stages.SOURCES:
        return name
    source = stages.RunStages.of(run_file.get("config", {})).source(name)
    roles = list(dict.fromkeys(stage.model for stage in source.stages if stage.model))
    own = [role for role in roles if role != stages.TRAINED]
    told = [f"{role} model {_model(role, run_file) or 'not named'}" for role in own]
    told += [f"{role} model" for role in roles if not own]
    told += [str(value) for value in map(run_file.get("config", {}).get, source.given) if value]
    return f"{name}: {', '.join(told)}"


def _dataset(run_file: Mapping) -> str | None:
    config = run_file.get("config", {})
    path = run_file.get("places", {}).get("dataset_path") or config.get("dataset_path")
    named = [(name, config.get(f"dataset_{name}")) for name in ("split", "revision")]
    return path and _noted(path, [f"{name} {value}" for name, value in named if value])


def _answers(run_file: Mapping, num_questions: int) -> str:
    config = run_file.get("config", {}) | run_file.get("bound", {})
    given = run_file.get("config", {}).get("answers")
    limit = run_file.get("config", {}).get("limit")
    told = _noted(f"{num_questions:,}", [f"limit {limit:,}"] if limit else [])
    if given:
        return f"{told}, answers given by {given}"
    return f"{told}, {plural(config['sample_k'], 'answer')} each" if "sample_k" in config else told


def _strategy(settings: Mapping, rewards: Sequence[str]) -> Iterator[str]:
    strategy = settings.get("strategy", strategies.DEFAULT)
    yield f"strategy {strategy}"
    for name in FLAGS:
        if name not in _TOLD_APART and has_effect(name, strategy, rewards) and settings.get(name) is not None:
            yield f"{name} {settings[name]}"


def _filters(settings: Mapping, funnel: Funnel) -> Iterator[str]:
    """The filters that ran, in their order, each with its limit."""
    for name in funnel.dropped:
        if name not in filters.FILTERS and name not in filters.ON_REQUEST:
            continue
        setting = _LIMITS.get(name, name)
        limit = settings.get(setting, _DEFAULTS.get(setting))
        if limit is None:
            yield name
        else:
            yield f"{name} {limit}" if setting == name else f"{name} ({setting} {limit})"


def _alpha(asked: float | str | None, found: float | None) -> str:
    if found is not None:
        return f"{asked}, which came to {found:.6g}"
    return "none" if asked is None else str(asked)
