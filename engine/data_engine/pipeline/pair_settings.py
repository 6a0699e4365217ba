"""What the pairs of a run depend on besides its answers: flags in, the rules of strategies and filters out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from data_engine import schemas, stages
from data_engine.config import RunConfig
from data_engine.config_checks import has_effect
from data_engine.errors import UserError, nearest
from data_engine.preferences import filters, strategies
from data_engine.preferences.answers import AnswerRule
from data_engine.preferences.filters import FilterRule
from data_engine.preferences.strategies import PairRule
from data_engine.stages import RunStages

AUTO = "auto"
# Those that the file of pairs always tells; it tells the others where they are not the defaults.
ALWAYS = ("rank", "distance", "beta", "seed")


@dataclass(frozen=True)
class Settings:
    """The flags of these names; kept in the metadata of a file of pairs."""

    rank: int = 3
    distance: int = 25
    beta: float = 0.1
    seed: int = 0
    rank_by: tuple[str, ...] = stages.SOURCES["implicit"].rank_by
    """full names of reward columns"""
    strategy: str = strategies.DEFAULT
    """a name of STRATEGIES"""
    right: float | None = None
    min_margin: float | None = None
    max_margin: float | None = None
    length_alpha: float | str | None = None
    """a number, or AUTO"""
    near_duplicates: float | None = None
    max_pairs: int = filters.MAX_PAIRS_PER_IDX
    length_balance: float = filters.MAX_MEAN_DIFFERENCE

    @classmethod
    def of(cls, config: RunConfig, run_stages: RunStages) -> "Settings":
        """What the flags say. Raises UserError for a strategy that is none, and for a reward that the run has not."""
        strategies.require_strategy(config.strategy)
        values = {name: getattr(config, name) for name in cls.__dataclass_fields__}
        values["rank_by"] = chosen_rewards(config.rank_by, run_stages)
        values["length_alpha"] = config.alpha
        return cls(**values)

    @classmethod
    def from_json(cls, told: Mapping) -> "Settings":
        """The settings that a file of pairs tells."""
        values = {name: told[name] for name in cls.__dataclass_fields__ if name in told}
        if "rank_by" in values:
            values["rank_by"] = tuple(values["rank_by"].split(","))
        return cls(**values)

    def to_json(self) -> str:
        """For the metadata of a file of pairs, by the names and in the spelling of the flags."""
        defaults = asdict(Settings())
        told = {name: value for name, value in asdict(self).items() if name in ALWAYS or value != defaults[name]}
        if "rank_by" in told:
            told["rank_by"] = ",".join(self.rank_by)
        return json.dumps(told)

    @property
    def names(self) -> tuple[str, ...]:
        """What the rewards that rank are called in tables."""
        return tuple(map(schemas.reward_name, self.rank_by))

    @property
    def pair_rule(self) -> PairRule:
        """For a strategy; an alpha that has to be found first is 0."""
        alpha = 0.0 if self.length_alpha in (None, AUTO) else self.length_alpha
        return PairRule(self.rank, self.distance, self.strategy, self.right, alpha)

    @property
    def filter_rule(self) -> FilterRule:
        """For the filters. Rewards that are numbers of a few values tie often; the implicit one alone pairs as ever."""
        implicit = set(self.rank_by) <= set(stages.SOURCES["implicit"].columns)
        equal = None if implicit or self.length_alpha else self.names
        given = {one.name: getattr(self, one.name) for one in fields(FilterRule) if one.name != "equal"}
        return FilterRule(equal, **given)

    def with_alpha(self, alpha: float) -> PairRule:
        """The rule once the alpha is found."""
        return replace(self.pair_rule, length_alpha=alpha)

    def answer_rule(self, markers: tuple[str, ...]) -> AnswerRule:
        """Which answers rank; `markers` are texts of the prompt format."""
        return AnswerRule(self.names, markers, self.near_duplicates)


def without_effect(config: RunConfig, run_stages: RunStages) -> dict[str, str]:
    """What to say of flags of pairing that were changed, by name, and change nothing beside the others."""
    told = {}
    if not has_effect("rank", config.strategy, run_stages.sources) and config.rank != RunConfig.rank:
        told["rank"] = f"rank has no effect: strategy {config.strategy} does not go by it"
    if not has_effect("beta", config.strategy, run_stages.sources) and config.beta != RunConfig.beta:
        told["beta"] = "beta has no effect: it scales the reward implicit, which is not among the run's"
    return told


def chosen_rewards(text: str | None, run_stages: RunStages) -> tuple[str, ...]:
    """The reward columns of --rank_by, in its order; without it those by which the run ranks.

    Raises UserError for one that no source of the run has, and for one that is named twice.
    """
    if text is None:
        return run_stages.rank_by
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in run_stages.columns:
            hint = nearest(name, run_stages.columns)
            raise UserError(
                f'rank_by names "{name}", which no source of reward of this run has{hint}; '
                f"known: {', '.join(run_stages.columns)}"
            )
        if names.count(name) > 1:
            raise UserError(f"rank_by names {name} twice")
    return tuple(names)
