"""A judge's yes or no: log p(yes) - log p(no) behind its question about an answer, as pipeline/judge.py scores it.

p(yes) is the sum over those of WORDS["yes"] that are one token of the judge's tokenizer, with or without a space before
them; p(no) likewise. What it is asked is the template of --yesno_template, or several, of an aspect each.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_engine.config import RunConfig
from data_engine.errors import Collected, UserError
from data_engine.flag_files import files_by_name, read_text
from data_engine.rewards import RewardSettings, StageColumns
from data_engine.rewards.aspects import rewards_of
from data_engine.schemas import score_name
from data_engine.stages import SourceFlags

WORDS = {"yes": ("Yes", "yes", "YES"), "no": ("No", "no", "NO")}
DEFAULT = (
    "Question: {question}\n"
    "Answer: {answer}\n\n"
    "Is every statement of this answer supported by the image? Reply with yes or no."
)
FIELDS = ("question", "answer")
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class YesNoTemplate:
    """A text in which {question} and {answer} stand once each; other braces are text."""

    text: str

    @classmethod
    def read(cls, path: str | None) -> "YesNoTemplate":
        """From a file, or the default one for None. Raises UserError for a file that is no template."""
        if path is None:
            return cls(DEFAULT)
        expected = "a text that has {question} and {answer}, or several as in faithful=one.txt,helpful=two.txt"
        text = read_text(f'yesno_template "{path}"', path, expected, "the default one")
        names = _FIELD.findall(text)
        for name in FIELDS:
            if names.count(name) != 1:
                raise UserError(
                    f'yesno_template "{path}" must have {{{name}}} once, where the {name} is to stand, and has it '
                    f"{names.count(name)} times"
                )
        for name in names:
            if name not in FIELDS:
                raise UserError(
                    f'yesno_template "{path}" has {{{name}}}, in whose place nothing would be put; known: '
                    "{question} and {answer}"
                )
        # An editor ends the last line with a line feed, which no judge should be asked with.
        return cls(text.rstrip("\n"))

    def asks(self, question: str, answer: str) -> str:
        """The text about one answer. What stands in question and answer is not looked at."""
        return _FIELD.sub(lambda found: {"question": question, "answer": answer}.get(found[1], found[0]), self.text)


def rewards(computed: Mapping[str, StageColumns], settings: RewardSettings) -> dict[str, np.ndarray]:
    """The judge's score of each answer, or of each aspect of it, and their mean."""
    return rewards_of("yesno", computed["yesno"].table)


def flags(config: RunConfig) -> SourceFlags:
    """The templates by the column of their scores; units are bound to the content of each, also to that of the default
    one, which may change with the version. Raises UserError for files that are no templates, each of them.
    """
    templates, problems = {}, Collected()
    for aspect, path in files_by_name("yesno_template", config.yesno_template).items():
        with problems.noting():
            templates[aspect] = YesNoTemplate.read(path)
    problems.raise_any()
    hashes = {aspect: hashlib.sha256(template.text.encode()).hexdigest() for aspect, template in templates.items()}
    value = {score_name(aspect): template for aspect, template in templates.items()}
    return SourceFlags(value, {"yesno_template": hashes.get("", hashes)})
