"""The reward `critic`: the number that a judge writes about an answer. What it is asked, and how its number is read.

A template is a YAML file: `prompt`, a text with {question} and {answer}; `number`, a regular expression with one group,
of which the last match in the judge's text counts; and, where they are not the default, `system` and `max_new_tokens`.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import yaml

from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.flag_files import read_text
from data_engine.rewards import RewardSettings, StageColumns
from data_engine.stages import SourceFlags

# LLaVA-Critic's prompt for one answer, arXiv:2410.02712, as its checkpoints were trained on it. Other judges write the
# scale before the number: "Score (0-100): 85".
DEFAULT = r"""
prompt: |-
  Given an image and a corresponding question, please serve as an unbiased and fair judge to evaluate the quality of answer answers provided by a Large Multimodal Model (LMM). Score the response out of 100 and explain your reasoning with specific details. Your task is provided as follows:
  Question: [{question}]
  The LMM response: [{answer}]
  ASSISTANT:
number: '(?i)\bscore\b(?:\W{0,4}(?:out of|\d+ ?(?:-|–|to)) ?\d+[)\]]?\**\s*(?=:|=|is\b))?\W{0,8}(?:(?:is|of)\W{0,4})?(\d+(?:\.\d+)?)'
"""  # noqa: E501
MAX_NEW_TOKENS = 512
_PLACES = ("question", "answer")
_PLACE = re.compile("{(question|answer)}")
_KEYS = ("prompt", "number", "system", "max_new_tokens")


@dataclass(frozen=True)
class CriticTemplate:
    """What a critic is asked about an answer."""

    prompt: str
    number: re.Pattern
    system: str | None = None
    max_new_tokens: int = MAX_NEW_TOKENS

    def filled(self, question: str, answer: str) -> str:
        """The prompt about an answer. Nothing in it is looked for in what was put in."""
        values = {"question": question, "answer": answer}
        return _PLACE.sub(lambda place: values[place[1]], self.prompt)

    def read(self, text: str) -> tuple[float | None, str | None]:
        """The number in a judge's text, or the reason why it has none."""
        found = [match[1] for match in self.number.finditer(text) if match[1] is not None]
        if not found:
            return None, "the critic's text does not match the template's expression"
        try:
            number = float(found[-1])
        except ValueError:
            return None, f'the critic\'s text has "{found[-1][:40]}" in the place of the number'
        return (number, None) if math.isfinite(number) else (None, f"the critic's number is {number}, not a finite one")


def rewards(computed: Mapping[str, StageColumns], settings: RewardSettings) -> dict[str, np.ndarray]:
    """The judge's own numbers."""
    return {"critic": computed["critic"].scores}


def flags(config: RunConfig) -> SourceFlags:
    """The template of --critic_template, or the default one; units are bound to its content."""
    text, where = DEFAULT, "the default critic_template"
    if config.critic_template is not None:
        where = f'critic_template "{config.critic_template}"'
        text = read_text(where, config.critic_template, "a template in YAML", "LLaVA-Critic's")
    return SourceFlags(template_in(text, where), {"critic_template": hashlib.sha256(text.encode()).hexdigest()})


def template_in(text: str, where: str) -> CriticTemplate:
    """The template that a file's text is; `where` names the file. Raises UserError where it is none."""
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{where} is not YAML{f', line {mark.line + 1}' if mark else ''}; {_EXPECTED}") from None
    if not isinstance(found, dict) or not {"prompt", "number"} <= found.keys():
        raise UserError(f"{where} has no prompt and number; {_EXPECTED}")
    if unknown := [name for name in found if name not in _KEYS]:
        raise UserError(f"{where} has the unknown key {unknown[0]}; known: {', '.join(_KEYS)}")
    for name in ("prompt", "number", "system"):
        if name in found and not (isinstance(found[name], str) and found[name].strip()):
            raise UserError(f"{where}: {name} must be text; in YAML, put it in quotes")
    missing = [name for name in _PLACES if f"{{{name}}}" not in found["prompt"]]
    if missing:
        raise UserError(f"{where}: its prompt has no {{{missing[0]}}}; it must say where question and answer go")
    tokens = found.get("max_new_tokens", MAX_NEW_TOKENS)
    if type(tokens) is not int or tokens < 1:
        raise UserError(f"{where}: max_new_tokens must be a whole number, at least 1, got {tokens}")
    return CriticTemplate(found["prompt"], _expression(found["number"], where), found.get("system"), tokens)


_EXPECTED = "expected the keys prompt, a text with {question} and {answer}, and number, a regular expression"


def _expression(pattern: str, where: str) -> re.Pattern:
    try:
        found = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{where}: number is no regular expression: {error}") from None
    if found.groups != 1:
        raise UserError(
            f"{where}: number must have exactly one group, which is the number, got {found.groups}; "
            r"groups of other kinds are (?:...), as in Score: (\d+)"
        )
    return found
