"""The picture of a run for the card of an export: pairs.parquet and the funnel in, PNG bytes out. No torch here."""

from pathlib import Path

from data_engine.preferences.counts import Funnel
from data_engine.reporting.columns import PairNumbers


def picture(pairs: Path, funnel: Funnel) -> bytes | None:
    """Rewards and lengths of the kept pairs, and the funnel, as one PNG; None where no pair was kept.

    The same pairs give the same bytes.
    """
    numbers = PairNumbers.read(pairs)
    kept, rewards = numbers.kept, numbers.rewards()
    if not len(kept) or not rewards:
        return None
    # matplotlib takes seconds to import.
    from data_engine.reporting import plots

    columns = {name: column[kept] for name, column in numbers.columns.items()}
    return plots.summary(columns, rewards[0], [(name.strip(), count) for name, count in funnel.lines()])
