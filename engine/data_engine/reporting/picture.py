"""The picture of a run for the card of an export: pairs.parquet and the funnel in, PNG bytes out. No torch here."""

from pathlib import Path

from data_engine.preferences.counts import Funnel
from data_engine.reporting.page import kept_numbers


def picture(pairs: Path, funnel: Funnel) -> bytes | None:
    """Rewards and lengths of the kept pairs, and the funnel, as one PNG; None where no pair was kept.

    The same pairs give the same bytes.
    """
    columns, _ = kept_numbers(pairs)
    if not len(columns["chosen_sum"]):
        return None
    # matplotlib takes seconds to import.
    from data_engine.reporting import plots

    return plots.summary(columns, [(name.strip(), count) for name, count in funnel.lines()])
