"""What of an exception stands in a message."""

import pytest

from data_engine.errors import first_line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such file\nmore of it"), "no such file"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("\n \n  at last \n"), "at last"),
        (NotImplementedError(" \n"), "NotImplementedError"),
        (OSError("x" * 1000), "x" * 300),
    ],
)
def test_an_exception_is_told_by_its_first_line_or_its_name(error, told):
    assert first_line(error) == told
