"""Scores of answers by a judge that reads question and answer as its own prompt: yes or no, or a reward model's number.

The k answers of a question share the beginning of their prompts, picture included. A judge whose prompts are read in
both directions, and one on the plain path, gets a whole prompt for each answer.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import pyarrow as pa
import torch
from torch import Tensor

from data_engine import schemas, stages
from data_engine.errors import BadRow, UserError
from data_engine.models.base import TextSide, VisionLanguageModel
from data_engine.models.layers.head import Head
from data_engine.models.layers.prefix import run_prefix
from data_engine.pipeline.passes import AnswerRunner, Computed
from data_engine.pipeline.runner import StageContext, UnitWork
from data_engine.pipeline.works import Behind, Whole, Work, lacks_room
from data_engine.questions import images
from data_engine.questions.conversation import Conversation, Message
from data_engine.questions.dataset import Question, read_images
from data_engine.questions.images import Decode
from data_engine.rewards.yesno import WORDS, YesNoTemplate
from data_engine.scoring.logprobs import MOST_AT_ONCE, Scored, in_groups, last_hidden, row_tokens, score_pass
from data_engine.scoring.self_check import self_check
from data_engine.store.units import UnitResult

log = logging.getLogger(__name__)

Asked = TypeVar("Asked")
"""what is asked about an answer: a prompt, or ids behind one"""


class Reading(Protocol):
    """What a judge is asked about an answer, and how its state behind that becomes a score."""

    def conversation(self, asked: Conversation, answer: str) -> Conversation:
        """What the judge reads of an answer to a question."""

    def of_hidden(self, hidden_ND: Tensor) -> Tensor:
        """The scores, fp32 [N], of the last hidden states of the last tokens."""

    def of_end(self, hidden_D: Tensor, logits_V: Tensor) -> Tensor:
        """The score of one answer where the model's own forward ran, which gives the logits itself."""


class YesNo:
    """log p(yes) - log p(no) behind a question about an answer."""

    def __init__(self, model: VisionLanguageModel, template: YesNoTemplate) -> None:
        """Raises UserError as said_ids does."""
        self._template = template
        self._yes, self._no = said_ids(model, template)
        self._head = None if model.why_plain else _rows_of(model.head, [*self._yes, *self._no])

    def conversation(self, asked: Conversation, answer: str) -> Conversation:
        """The question's own turns and pictures, its last text replaced by the template's; no system text."""
        *earlier, last = (message for message in asked.messages if message.role != "system")
        pictures = (part for part in last.content if isinstance(part, int))
        text = self._template.asks(asked.question, asked.answer_start + answer)
        return Conversation((*earlier, Message("user", (*pictures, text))))

    def of_hidden(self, hidden_ND: Tensor) -> Tensor:
        return _odds(self._head.logits(hidden_ND), len(self._yes))

    def of_end(self, hidden_D: Tensor, logits_V: Tensor) -> Tensor:
        return _odds(logits_V[[*self._yes, *self._no]], len(self._yes))


class Scalar:
    """The number of a reward model's head."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self._head = model.value_head

    def conversation(self, asked: Conversation, answer: str) -> Conversation:
        """The conversation as it is, and the answer as its last message."""
        return asked.answered(answer)

    def of_hidden(self, hidden_ND: Tensor) -> Tensor:
        return self._head(hidden_ND)

    def of_end(self, hidden_D: Tensor, logits_V: Tensor) -> Tensor:
        return self._head(hidden_D[None])[0]


def said_ids(model: VisionLanguageModel | TextSide, template: YesNoTemplate) -> list[list[int]]:
    """The tokens that say yes, and those that say no.

    Raises UserError for a judge in whose vocabulary one of the two is no token, and one whose prompt opens a thought,
    behind which neither of the two is to be expected.
    """
    if model.read_answer is not None and model.read_answer(Conversation.of(template.text), []).text is None:
        raise UserError(
            "the yesno model's chat template opens a thought before each answer, so that yes or no does not stand "
            "behind the question: where the template reads that, --yesno_chat_template_kwargs "
            """'{"enable_thinking": false}' switches it off; else choose another --yesno_model_path, or ask this """
            "model by --critic_model_path"
        )
    return [word_ids(model, name) for name in WORDS]


def word_ids(model: VisionLanguageModel | TextSide, name: str) -> list[int]:
    """The tokens that say yes, or no. Raises UserError where no spelling is one token."""
    found = model.word_ids(WORDS[name])
    if not found:
        raise UserError(
            f"the yesno model has no token that is {name} in any spelling ({', '.join(WORDS[name])}): choose another "
            "--yesno_model_path"
        )
    return found


def _rows_of(head: Head, ids: list[int]) -> Head:
    """The head of a few tokens alone."""
    bias = None if head.bias is None else head.bias.detach()[ids]
    return replace(head, weight=head.weight.detach()[ids], bias=bias, never=None)


def _odds(logits_NW: Tensor, num_yes: int) -> Tensor:
    """log p(yes) - log p(no) [N], of the logits of both's tokens: what all tokens add up to cancels out."""
    return logits_NW[..., :num_yes].logsumexp(-1) - logits_NW[..., num_yes:].logsumexp(-1)


def _grouped(items: Sequence, each: int) -> list[Sequence]:
    """One group of `each` items after the other."""
    return [items[at : at + each] for at in range(0, len(items), each)]


def _fitting(
    texts: Sequence[str], asked: Mapping[str, Sequence[Asked]], lacks: Callable[[Asked], str | None]
) -> tuple[list[Asked], dict[int, str]]:
    """What is asked about each answer, in their order, and, by their places, the answers that are left out: `lacks`
    tells something of what is asked about them. Raises BadRow where that is all of them.
    """
    told = {text: next(filter(None, map(lacks, own)), None) for text, own in asked.items()}
    left_out = {place: told[text] for place, text in enumerate(texts) if told[text]}
    if len(left_out) == len(texts):
        raise BadRow(left_out[0])
    return [one for text in texts if not told[text] for one in asked[text]], left_out


@dataclass(frozen=True)
class JudgeScores:
    """Scores of answers; the protocol is works.Scorer."""

    model: VisionLanguageModel
    readings: Mapping[str, Reading]
    """what each answer is read by, by the column of the scores; they differ in what they ask alone"""
    max_megapixels: float
    decode: Decode = images.decode
    what = "scores"

    @property
    def whole(self) -> bool:
        """Whether each answer needs a prompt of its own. Looks at the model when it is first asked."""
        return bool(self.model.why_plain) or self.model.reads_ahead

    def prepare(self, question: Question, rows: list[dict]) -> Work:
        pictures = read_images(question, self.max_megapixels, self.decode)
        texts = [row["answer"] for row in rows]
        unique, each = list(dict.fromkeys(texts)), len(self.readings)
        asked = [one.conversation(question.conversation, text) for text in unique for one in self.readings.values()]
        if self.whole:
            prompts = self.model.prompts(asked, pictures, True, self.max_megapixels)
            found = dict(zip(unique, _grouped(prompts, each), strict=True))
            kept, too_long = _fitting(texts, found, lambda prompt: lacks_room(self.model, prompt, ()))
            return Whole(kept, too_long, each)
        prompt, tails = self.model.shared_prompt(asked, pictures, self.max_megapixels)
        found = dict(zip(unique, _grouped(tails, each), strict=True))
        rows, too_long = _fitting(texts, found, lambda ids: lacks_room(self.model, prompt, ids))
        return Behind(Scored(prompt, rows), row_tokens(prompt.length, rows), left_out=too_long, each=each)

    @torch.inference_mode()
    def compute(self, works: Sequence[Work]) -> list[list[Tensor]]:
        if self.whole:
            return self._of_whole(works)
        hidden = last_hidden(self.model, [work.scored for work in works])
        return [list(self._reading.of_hidden(torch.stack(rows)).view(-1, len(self.readings))) for rows in hidden]

    @property
    def _reading(self) -> Reading:
        return next(iter(self.readings.values()))

    def _of_whole(self, works: Sequence[Whole]) -> list[list[Tensor]]:
        """Equal answers have the same prompts, which are run once."""
        unique = list({id(prompt): prompt for work in works for prompt in work.prompts}.values())
        if self.model.why_plain:
            scores = [self._reading.of_end(*self.model.plain_end(prompt)) for prompt in unique]
        else:
            groups = in_groups(unique, lambda prompt: prompt.length, MOST_AT_ONCE)
            ends = (run_prefix(self.model, prompt).end for some in groups for prompt in self.model.encoded(some))
            scores = [self._reading.of_hidden(end.hidden_D[None])[0] for end in ends]
        found = dict(zip(map(id, unique), scores, strict=True))
        return [
            [torch.stack(own) for own in _grouped([found[id(prompt)] for prompt in work.prompts], len(self.readings))]
            for work in works
        ]

    def check(self, work: Work, found: list[Tensor]) -> None:
        """By the log-probs of the prompts behind their common beginning: many numbers, where the scores are a few."""
        if isinstance(work, Whole):
            return
        [logps] = score_pass(self.model, [work.scored])
        difference = self_check(self.model, work.scored.prompt, work.scored.answers, logps)
        log.info("self-check: shared and plain log-probs of prompts differ by %.1e nat a token on average", difference)


def yesno_runner(context: StageContext) -> AnswerRunner:
    """The runner of the judge that says yes or no."""
    templates: Mapping[str, YesNoTemplate] = context.config.source_flags["yesno"].value
    return _runner(context, {name: YesNo(context.model, template) for name, template in templates.items()})


def scalar_runner(context: StageContext) -> AnswerRunner:
    """The runner of a reward model with a head of one number."""
    return _runner(context, {schemas.score_name(""): Scalar(context.model)})


def _runner(context: StageContext, readings: Mapping[str, Reading]) -> AnswerRunner:
    scorer = JudgeScores(context.model, readings, context.config.max_megapixels, context.decode)
    # Here: prompts are made in another thread, which must not run the model.
    log.info("answers share the beginning of their prompts: %s", "no" if scorer.whole else "yes")
    result = functools.partial(_unit, columns=list(readings))
    return AnswerRunner(scorer, context.budgets["score_tokens"], result, split=context.split)


def _unit(work: UnitWork, found: Computed, columns: Sequence[str]) -> UnitResult:
    rows = [
        {"idx": row["idx"], "sample_index": row["sample_index"], **dict(zip(columns, scores.tolist(), strict=True))}
        for row, scores in found.scored
    ]
    idx_type = work.inputs[stages.SAMPLING.name].table.schema.field("idx").type
    return found.result(pa.Table.from_pylist(rows, schemas.scores(idx_type, columns)))
