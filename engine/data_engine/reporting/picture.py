"""The picture of a run for the card of an export: pairs.parquet and the funnel in, PNG bytes out. No torch here."""

from pathlib import Path

from data_engine.preferences.funnel import Funnel
from data_engine.reporting.pair_numbers import SIDES, WORDS, PairNumbers


def picture(pairs: Path, funnel: Funnel) -> bytes | None:
    """Rewards and lengths of the kept pairs, and the funnel, as one PNG; None where no pair was kept.

    The same pairs give the same bytes.
    """
    numbers = PairNumbers.read(pairs)
    kept, column = numbers.kept, numbers.first_reward()
    if not len(kept) or column is None:
        return None
    # matplotlib takes seconds to import.
    from data_engine.reporting import plots

    columns = {name: numbers.columns[name][kept] for name in WORDS}
    reward = numbers.called(column)
    columns |= {f"{side}_{reward}": numbers.columns[f"{side}_{column}"][kept] for side in SIDES}
    return plots.summary(columns, reward, [(name.strip(), count) for name, count in funnel.lines()])
