"""The rule `final_answer`: 1 where an answer's final answer is the one of the column `answer`, else 0.

The final answer is what stands behind the last "Final Answer:" (also "final answer is", or a heading), or in the last
\\boxed{} or <answer>; an answer without one is wrong, 0. What counts as the same is in values.py. None where the column
has nothing to compare with.
"""

import json
import re
from collections.abc import Callable

from data_engine.plural import plural
from data_engine.rules.cells import values_in
from data_engine.rules.latex import inside_braces
from data_engine.rules.values import equal

_MARK = re.compile(
    r"final[ _]answer(?:\s+is\b[\s*_]*[:：]?|\W{0,4}[:：]|[ \t*_]*\n)|\\(?:boxed|fbox)(?=\s*\{)|<answer>",
    re.IGNORECASE,
)
_END = re.compile("</answer>", re.IGNORECASE)
# A line that only opens a formula of LaTeX, which stands on the next.
_OPENS = re.compile(r"\$\$?|\\[\[(]")
# No more of the last marks are looked at: a model may repeat \boxed{ to its end.
_MOST_MARKS = 100
# Marks of Markdown that may stand between the mark and the answer.
_NOISE = " \t*_`"


def make(collected: list) -> Callable[[dict, list[str]], list[float | None]]:
    """The rule."""
    return final_answer


def final_answer(row: dict, answers: list[str]) -> list[float | None]:
    """Whether each answer ends with what is right."""
    right = [extracted(text) or _key(text) for text in map(as_text, values_in(row["answer"]))]
    if not right:
        return [None] * len(answers)
    found = map(extracted, answers)
    return [float(text is not None and any(equal(one, text) for one in right)) for text in found]


def warning(answers: list[str]) -> str | None:
    """A warning where no answer has a final answer, as where questions ask for a single word: each is wrong then."""
    if not answers or any(extracted(answer) is not None for answer in answers):
        return None
    return (
        f"none of the first {plural(len(answers), 'answer')} has a final answer (Final Answer: ..., \\boxed{{}} or "
        f"<answer>): each is wrong; the first is {json.dumps(answers[0][:60], ensure_ascii=False)}. Let the questions "
        "ask for one; for questions that ask for the answer alone, docs/rules.md has a rule"
    )


def as_text(value: object) -> str:
    """A value as text: numbers as they are written, true and false as words."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def extracted(answer: str) -> str | None:
    """The final answer in a text, on one line; None where there is none."""
    marks = list(_MARK.finditer(answer))
    for mark in reversed(marks[-_MOST_MARKS:]):
        behind = answer[mark.end() :]
        if mark[0].startswith("\\"):
            found = inside_braces(behind.lstrip())
        else:
            lines = (_bare(line) for line in _END.split(behind, 1)[0].splitlines())
            found = next((line for line in lines if line and not _OPENS.fullmatch(line)), "")
        if found:
            # "Final Answer: \\boxed{5}": what is in the box.
            return _bare(found)
    return None


def _bare(line: str) -> str:
    """Without marks of Markdown around it, also where a dot stands behind them: *cat*."""
    end = line.rstrip(".!;, ")
    return (end if end.endswith(("*", "_", "`")) else line).strip(_NOISE)


def _key(text: str) -> str:
    # As the answers are, which lose the marks of __init__ too; the grade A* is no option.
    bare = _bare(text)
    return bare if len(bare) > 1 else text
