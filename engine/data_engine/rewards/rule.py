"""The reward `rule`: the number that a function gives an answer. What --rule names is read and tried here."""

from collections.abc import Mapping

import numpy as np

from data_engine.config import RunConfig
from data_engine.flag_files import RULES_BY_NAME, files_by_name
from data_engine.rewards import RewardSettings, StageColumns
from data_engine.rewards.aspects import rewards_of
from data_engine.rules import BUILT_IN
from data_engine.rules.chosen import Rule, read_rule
from data_engine.rules.client import RuleProcess
from data_engine.rules.worker import Limits
from data_engine.schemas import REFERENCE_COLUMNS, score_name
from data_engine.stages import SourceFlags

LIMITS = Limits()


def rewards(computed: Mapping[str, StageColumns], settings: RewardSettings) -> dict[str, np.ndarray]:
    """The rule's own numbers; of several, those of each, and their mean."""
    return rewards_of("rule", computed["rule"].table)


def flags(config: RunConfig) -> SourceFlags:
    """The rules of --rule by the column of their scores, and the dataset's columns that they read: all of them, where
    one is of the user's own.

    Raises UserError where one cannot be imported: before hours of work, and in a process of its own.
    """
    rules = {aspect: read_rule(one) for aspect, one in files_by_name("rule", config.rule, RULES_BY_NAME).items()}
    warnings = dict.fromkeys(told for rule in rules.values() if rule.module is None for told in _tried(rule))
    names = sorted((ours, theirs) for ours, theirs in config.column_names.items() if ours in REFERENCE_COLUMNS)
    named = ",".join(f"{ours}={theirs}" for ours, theirs in names if ours != theirs) or None
    identities = {aspect: rule.identity for aspect, rule in rules.items()}
    bound = {"rule": identities.get("", identities), "reference_columns": named}
    value = {score_name(aspect): rule for aspect, rule in rules.items()}
    needed_by = f"rule {config.rule}"
    built_in = [BUILT_IN[rule.shown] for rule in rules.values() if rule.module is not None]
    if len(built_in) < len(rules):
        return SourceFlags(value, bound, None, needed_by, tuple(warnings))
    columns = tuple(dict.fromkeys(name for one in built_in for name in one.columns))
    reads = {one.reads for one in built_in}
    return SourceFlags(value, bound, columns, needed_by, reads=reads.pop() if len(reads) == 1 else None)


def _tried(rule: Rule) -> tuple[str, ...]:
    """What a person should know of a rule of the user's own, which is imported."""
    process = RuleProcess(rule, LIMITS)
    process.start()
    process.close()
    return tuple(
        f'rule "{rule.shown}" reads "{file}", whose content is not bound: units stay as they are where it changes; '
        "put what it takes from there into a column of the dataset"
        for file in process.read
    )
