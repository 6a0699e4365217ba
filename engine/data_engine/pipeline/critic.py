"""A critic's texts about the answers of a unit: one greedy generation of the judge an answer, its number read from it.

The judge sees the question's pictures, and its own chat template. Equal answers to a question are judged once.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image

from data_engine import schemas, stages
from data_engine.errors import OUT_OF_MEMORY, BadRow, UserError
from data_engine.models.base import Prompt
from data_engine.pipeline.answers import KEY_AND_TEXT, by_question
from data_engine.pipeline.runner import StageContext, UnitByUnit, UnitWork
from data_engine.plural import plural
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import Question, left_out_for, read_images
from data_engine.questions.images import BadImage
from data_engine.questions.prefetch import ahead
from data_engine.questions.thoughts import ReadAnswer
from data_engine.rewards.critic import CriticTemplate
from data_engine.sampling.backend import BackendSettings, SamplingBackend, make_backend
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.requests import BROKEN, TOO_LARGE, Completion, PromptRequest
from data_engine.scoring.self_check import settle
from data_engine.store import units
from data_engine.store.units import Row, UnitResult

NAME = "critic"
UNFINISHED = "the critic's thought does not end"
NOT_WRITTEN = {
    BROKEN: "the critic's logits are not finite (NaN or infinite)",
    TOO_LARGE: OUT_OF_MEMORY,
}
"""Why a text that ended so is none."""

# Questions whose prompts are made in advance: each has one for every answer.
AHEAD = 3
About = tuple[str, Conversation, Prompt | str]
"""an answer, what the judge is asked about it, and the prompt of that, or why there is none"""
AnswerKey = tuple[int | str, str]
"""idx and text of an answer"""

Written = tuple[Completion, ReadAnswer]
"""What a judge wrote, and its final text behind its thought"""


def runner(context: StageContext) -> UnitByUnit:
    """The runner of the stage of critics."""
    template: CriticTemplate = context.config.source_flags[NAME].value
    params = SamplingParams(0, 0, 1, 1, template.max_new_tokens)
    # One text a prompt: as many prompts are kept as texts are written.
    slots, pages = context.budgets["decode_slots"], context.budgets.get("decode_pages", 0)
    rows = min(slots, context.budgets["decode_rows"])
    backend = make_backend(
        "plain" if context.model.why_plain else "native",
        BackendSettings(
            context.model, params, 1, rows, slots, context.split, num_pages=pages,
            require_fast=context.config.require_fast,
        ),
    )  # fmt: skip
    critic = Critic(context, template, backend)
    return UnitByUnit(critic.unit, backend.close)


class Critic:
    """A judge at work on units."""

    def __init__(self, context: StageContext, template: CriticTemplate, backend: SamplingBackend) -> None:
        self._context, self._model, self._template, self._backend = context, context.model, template, backend
        # Requests are counted over all units.
        self._num_requests = 0

    def unit(self, work: UnitWork) -> UnitResult:
        """The texts and numbers of the answers of a unit; a question that the judge cannot be shown is left out.

        Raises UserError where none of the first unit's texts has a number.
        """
        sampled = work.inputs[stages.SAMPLING.name].table
        answers = by_question(sampled, KEY_AND_TEXT)
        problems: dict[AnswerKey, str] = {}
        left_out: tuple[list[Row], list[Row]] = ([], [])
        written = self._written(work, answers, problems, left_out)
        gone = {idx for rows in left_out for idx, _ in rows}
        kept = (row for idx, rows in answers.items() if idx not in gone for row in rows)
        rows = [self._row(row, written, problems) for row in kept]
        self._require_numbers(rows)
        table = pa.Table.from_pylist(rows, schemas.criticised(sampled.schema.field("idx").type))
        return UnitResult(table, *left_out, retries=self._backend.halvings)

    def _written(
        self, work: UnitWork, answers: dict, problems: dict[AnswerKey, str], left_out: tuple[list[Row], list[Row]]
    ) -> dict[AnswerKey, Written]:
        """What the judge writes about each answer; problems and questions that are left out are noted."""
        asked: list[tuple[AnswerKey, Conversation]] = []
        finished: list[bool] = []

        def requests() -> Iterator[PromptRequest]:
            wanted = ((question, answers[question.idx]) for question in work.questions if question.idx in answers)
            for question, about_each in ahead(lambda item: self._about_each(*item), wanted, AHEAD):
                if isinstance(about_each, str):
                    left_out[question.missing].append((question.idx, about_each))
                    continue
                for text, about, prompt in about_each:
                    problem = prompt if isinstance(prompt, str) else self._too_long(prompt)
                    if problem:
                        problems[question.idx, text] = problem
                        continue
                    asked.append(((question.idx, text), about))
                    # The draws of a greedy text hang on no key.
                    yield PromptRequest(prompt, [0])
            finished.append(True)

        found: list[Completion] = []
        first = self._num_requests
        self._backend.submit(requests())
        while not finished or len(found) < len(asked):
            found += self._backend.poll()
        self._num_requests += len(asked)
        told = ((one, *asked[one.request - first]) for one in found)
        return {key: (one, self._model.read_answer(about, one.token_ids)) for one, key, about in told}

    def _about_each(self, question: Question, rows: Sequence[dict]) -> tuple[Question, list[About] | str]:
        """What the judge is asked about each answer to a question, or why the question cannot be shown.

        Called in another thread: pixels and prompts are made while the model writes.
        """
        _ = question.digest
        try:
            pictures = read_images(question, self._context.config.max_megapixels, self._context.decode)
        except (BadRow, BadImage) as problem:
            return left_out_for(question, problem), str(problem)
        texts = list(dict.fromkeys(row["answer"] for row in rows))
        asked = [self._about(question.conversation, text, len(pictures)) for text in texts]
        return question, list(zip(texts, asked, self._prompts(asked, pictures), strict=True))

    def _prompts(self, asked: Sequence[Conversation], pictures: Sequence[Image.Image]) -> list[Prompt | str]:
        """The prompt of each conversation, or why it has none."""
        most = self._context.config.max_megapixels
        try:
            return self._model.prompts(asked, pictures, False, most)
        except (BadRow, BadImage) as problem:
            # One by one, to see which it is.
            return [str(problem)] if len(asked) == 1 else [
                found for one in asked for found in self._prompts([one], pictures)
            ]  # fmt: skip

    def _about(self, conversation: Conversation, answer: str, num_pictures: int) -> Conversation:
        """What the judge is asked about an answer."""
        text = self._template.filled(asked_in(conversation), answer)
        return Conversation.of(text, num_pictures, self._template.system)

    def _too_long(self, prompt: Prompt) -> str | None:
        """What is said of a prompt behind which a text has no room."""
        model, new = self._model, self._template.max_new_tokens
        settle(model, prompt, new)
        if prompt.length + new <= model.max_positions:
            return None
        return (
            f"too long for the critic: prompt of {prompt.length} tokens, {new} to generate, "
            f"room for {model.max_positions}"
        )

    def _row(self, row: dict, written: dict[AnswerKey, Written], problems: dict[AnswerKey, str]) -> dict:
        judged = (row["idx"], row["answer"])
        found = {"idx": row["idx"], "sample_index": row["sample_index"]}
        if judged in problems:
            return {**found, "reason": problems[judged]}
        one, read = written[judged]
        if one.finish_reason in NOT_WRITTEN:
            return {**found, "finish_reason": one.finish_reason, "reason": NOT_WRITTEN[one.finish_reason]}
        critique = self._model.text(one.token_ids)
        # A number of the thought is none of the judge's.
        score, reason = (None, UNFINISHED) if read.text is None else self._template.read(read.text)
        return {**found, "score": score, "critique": critique, "finish_reason": one.finish_reason, "reason": reason}

    def _require_numbers(self, rows: Sequence[dict]) -> None:
        """Raise UserError where no text of the first unit has a number: the template does not fit the judge."""
        texts = [row for row in rows if row.get("critique") is not None]
        if not texts or any(row["score"] is not None for row in texts):
            return
        if not units.published(Path(self._context.config.work_dir), NAME):
            raise UserError(
                f"critic: none of the first {plural(len(texts), 'text')} of the critic has a number: "
                f"{texts[0]['reason']}. The "
                f'first text is "{texts[0]["critique"][:200]}"; write a --critic_template that fits this model'
            )


def asked_in(conversation: Conversation) -> str:
    """What a critic is told that was asked: the question; of several turns, all of them."""
    turns = [message for message in conversation.messages if message.role != "system"]
    if len(turns) == 1:
        return conversation.question
    return "\n".join(f"{message.role}: {message.text}" for message in turns)
