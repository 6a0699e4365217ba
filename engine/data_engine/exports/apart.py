"""An order in which rows of one question do not follow each other, close to a given one."""

from array import array
from collections.abc import Sequence


def apart(owners: Sequence[int]) -> array:
    """The order of rows, as their numbers, in which no two neighbours have the same owner; nor the last and the first.

    Rows keep their place but for the few that exchange it. Where one owner has more than half of the rows there is no
    such order; as many of its rows as can be stand alone then.
    """
    order = array("q", range(len(owners)))
    for at in range(1, len(order)):
        if owners[order[at]] == owners[order[at - 1]]:
            other = _next_of_another(order, owners, at)
            if other is None:
                break
            order[at], order[other] = order[other], order[at]
    _mend(order, owners)
    return _interleaved(order, owners) if _conflicts(order, owners) else order


def _next_of_another(order: array, owners: Sequence[int], at: int) -> int | None:
    owner = owners[order[at]]
    return next((other for other in range(at + 1, len(order)) if owners[order[other]] != owner), None)


def _conflicts(order: array, owners: Sequence[int]) -> list[int]:
    """The places whose row has the owner of the one before, which of the first is the last."""
    return [at for at in range(len(order)) if len(order) > 1 and owners[order[at]] == owners[order[at - 1]]]


def _mend(order: array, owners: Sequence[int]) -> None:
    """Exchange each row that still stands beside its own with one to which both places are open, the first there is."""
    size = len(order)

    def fits(at: int, owner: int) -> bool:
        return owner not in (owners[order[at - 1]], owners[order[(at + 1) % size]])

    for at in _conflicts(order, owners):
        owner = owners[order[at]]
        for other in range(size):
            theirs = owners[order[other]]
            if theirs != owner and fits(other, owner) and fits(at, theirs):
                order[at], order[other] = order[other], order[at]
                break


def _interleaved(order: array, owners: Sequence[int]) -> array:
    """The rows owner by owner, those with most rows first, over every second place and then over the others."""
    rows: dict[int, list[int]] = {}
    for row in order:
        rows.setdefault(owners[row], []).append(row)
    by_size = sorted(rows.values(), key=len, reverse=True)
    spread = array("q", order)
    places = [*range(0, len(order), 2), *range(1, len(order), 2)]
    for place, row in zip(places, (row for some in by_size for row in some), strict=True):
        spread[place] = row
    return spread
