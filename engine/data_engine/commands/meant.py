"""What is meant by a name that no flag has: a typo, a part of a name, or what another program calls it."""

import difflib
from collections.abc import Iterable

from data_engine.errors import LEAST_LIKENESS
from data_engine.flags import CALLED_ELSEWHERE


def meant_by(name: str, known: Iterable[str]) -> str | None:
    """The known name that is meant, or None: no advice is better than a wrong one."""
    name, known = name.replace("-", "_").lower(), list(known)
    elsewhere = {other: ours for other, ours in CALLED_ELSEWHERE.items() if ours in known}
    if name in elsewhere or name in known:
        return elsewhere.get(name, name)
    if len(name) > 2 and (found := _by_part(name, known)):
        return found
    # Typos seldom change the first letter: revision is none of precision, which is what others call dtype.
    others = [other for other in elsewhere if other[:1] == name[:1]]
    near = difflib.get_close_matches(name, [*known, *others], n=1, cutoff=LEAST_LIKENESS)
    return elsewhere.get(near[0], near[0]) if near else None


def _by_part(name: str, known: list[str]) -> str | None:
    """The known name that begins with this one, or is its beginning, or the only one that ends with it as a word."""
    if begins := [one for one in known if one.startswith(name)]:
        return min(begins, key=len)
    if begun := [one for one in known if name.startswith(f"{one}_")]:
        return max(begun, key=len)
    ends = [one for one in known if one.endswith(f"_{name}")]
    return ends[0] if len(ends) == 1 else None
