"""How the tests with made-up data choose it: the same data each time, or, by `make fuzz`, other data and more of it.

conftest.py loads the profile before any test is read. Seeds are given to pytest as --hypothesis-seed.
"""

import os

from hypothesis import settings

FEW = 100


def profile(times: str | None) -> settings:
    """The settings of all such tests; `times`, the value of FUZZ_TIMES, is how often more data is tried.

    No example has a deadline: a machine with other work makes any of them slow.
    """
    if not times:
        return settings(derandomize=True, max_examples=FEW, deadline=None)
    # A failure is printed with what reproduces it, whatever machine it is found on.
    return settings(derandomize=False, max_examples=FEW * int(times), print_blob=True, deadline=None)


def examples(usually: int) -> int:
    """`usually`, or as many times more as are asked for: for tests of which a single example is slow."""
    return usually * settings.default.max_examples // FEW


def load_from_environment() -> None:
    """Make `profile` the default of the tests that are read from now on."""
    settings.register_profile("data-engine", profile(os.environ.get("FUZZ_TIMES")))
    settings.load_profile("data-engine")
