"""The reward `rule`: the number that a function gives an answer. What --rule names is read and tried here."""

from collections.abc import Mapping

import numpy as np

from data_engine.config import RunConfig
from data_engine.rewards import RewardSettings, StageColumns
from data_engine.rules import BUILT_IN
from data_engine.rules.chosen import read_rule
from data_engine.rules.process import RuleProcess
from data_engine.rules.worker import Limits
from data_engine.schemas import REFERENCE_COLUMNS
from data_engine.stages import SourceFlags

LIMITS = Limits()


def rewards(computed: Mapping[str, StageColumns], settings: RewardSettings) -> dict[str, np.ndarray]:
    """The rule's own numbers."""
    return {"rule": computed["rule"].scores}


def flags(config: RunConfig) -> SourceFlags:
    """The rule of --rule, and the columns that it reads: all of them, for one of the user's own.

    Raises UserError where it cannot be imported: before hours of work, and in a process of its own.
    """
    rule, own, warnings = read_rule(config.rule), BUILT_IN.get(config.rule), ()
    if own is None:
        process = RuleProcess(rule, LIMITS)
        process.start()
        process.close()
        warnings = tuple(
            f'rule "{rule.shown}" reads "{file}", whose content is not bound: units stay as they are where it changes; '
            "put what it takes from there into a column of the dataset"
            for file in process.read
        )
    names = sorted((ours, theirs) for ours, theirs in config.column_names.items() if ours in REFERENCE_COLUMNS)
    named = ",".join(f"{ours}={theirs}" for ours, theirs in names if ours != theirs) or None
    bound = {"rule": rule.identity, "reference_columns": named}
    needed_by = f"rule {rule.shown}"
    if own is None:
        return SourceFlags(rule, bound, None, needed_by, warnings)
    return SourceFlags(rule, bound, own.columns, needed_by, reads=own.reads)
