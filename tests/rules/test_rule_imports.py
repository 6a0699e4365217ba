"""The file of a rule in its process: what it reads, why it cannot be imported, and which functions can be called."""

import contextlib
import textwrap

import pytest

from data_engine.errors import UserError
from data_engine.rules.chosen import Rule
from data_engine.rules.client import Judged, RuleProcess
from data_engine.rules.worker import Limits

LITTLE = Limits(memory_bytes=120 << 20)
HASTY = Limits(processor_s=0.4, import_s=0.4)


def test_files_that_a_rule_reads_while_it_is_imported_are_told_but_not_those_of_packages(tmp_path):
    (tmp_path / "table.json").write_text("{}")
    opened = f"open({str(tmp_path / 'table.json')!r}).close()"
    source = (
        f"import decimal, numpy, unicodedata, yaml\n{opened}\ndef f(row, answers):\n    return [1] * len(answers)\n"
    )
    running = RuleProcess(Rule("mine.py:f", function="f", source=source), LITTLE)
    running.start()
    running.close()
    assert running.read == [str(tmp_path / "table.json")]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("while True: pass", "importing the file took more than 0.4 s"),
        ("import os; os._exit(0)", r"importing the file ended its process \(exit code 0\)"),
        ("import sys; sys.exit()", r"importing the file failed: SystemExit \(line 1\)"),
        ("x = bytearray(1 << 33)", r"importing the file failed: MemoryError \(line 1\)"),
        (
            "import helper_beside",
            "importing the file failed: ModuleNotFoundError: No module named 'helper_beside' .line 1.; "
            "nothing beside the file can be imported",
        ),
        ("class f: pass\nf = f()", "the file has f, no function, f"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused(source, told, tmp_path, monkeypatch):
    # A file in the current folder is not bound, and not found.
    monkeypatch.setattr("data_engine.rules.client.SPARE_S", 60)
    (tmp_path / "helper_beside.py").write_text("")
    monkeypatch.chdir(tmp_path)
    running = RuleProcess(Rule("mine.py:f", function="f", source=source), HASTY if "0.4 s" in told else LITTLE)
    with pytest.raises(UserError, match=f'rule "mine.py:f": {told}'):
        running.start()
    running.close()


@pytest.mark.parametrize(
    "source",
    [
        """
        import functools
        def each(score):
            @functools.wraps(score)
            def every(row, answers):
                return [score(one) for one in answers]
            return every
        @each
        def f(answer): return len(answer)
        """,
        # As Python 3.14 does where an annotation names what is imported for type checkers alone.
        """
        class Unknown:
            @property
            def __signature__(self): return imported_for_type_checkers
            def __call__(self, row, answers): return map(len, answers)
        f = Unknown()
        """,
    ],
    ids=["decorated", "of an unknown signature"],
)
def test_a_function_that_can_be_called_is_taken_whatever_python_tells_of_its_arguments(source):
    rule = Rule("mine.py:f", function="f", source=textwrap.dedent(source))
    with contextlib.closing(RuleProcess(rule, LITTLE)) as running:
        running.start()
        assert running.judge({}, ["three", "no"]) == Judged((5.0, 2.0), (None, None))


def test_a_function_that_cannot_be_called_is_told_by_the_names_of_its_arguments():
    """Their defaults are not told: they may be long, and may fail to become text."""
    source = "class Odd:\n    def __repr__(self): return 1 / 0\ndef f(row: dict, odd=Odd(), *, answers) -> list: ...\n"
    with contextlib.closing(RuleProcess(Rule("mine.py:f", function="f", source=source), LITTLE)) as running:
        told = r"f\(row, odd, \*, answers\) cannot be called with a row and the list of its answers: missing a required"
        with pytest.raises(UserError, match=told):
            running.start()
