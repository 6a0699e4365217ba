"""The picture of a run for the card of an export: pairs.parquet and the funnel in, PNG bytes out. No torch here."""

from pathlib import Path

from data_engine.preferences.counts import Funnel
from data_engine.reporting.columns import kept_numbers, shown_rewards


def picture(pairs: Path, funnel: Funnel) -> bytes | None:
    """Rewards and lengths of the kept pairs, and the funnel, as one PNG; None where no pair was kept.

    The same pairs give the same bytes.
    """
    columns, _ = kept_numbers(pairs)
    rewards = shown_rewards(columns)
    if not len(columns["margin"]) or not rewards:
        return None
    # matplotlib takes seconds to import.
    from data_engine.reporting import plots

    return plots.summary(columns, rewards[0], [(name.strip(), count) for name, count in funnel.lines()])
