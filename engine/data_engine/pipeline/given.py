"""Stage 0 where answers come from a file: they are published as sampled ones are, and no model runs."""

from collections.abc import Callable, Iterable

import pyarrow as pa

from data_engine import schemas
from data_engine.errors import BadRow
from data_engine.pipeline.runner import StageContext, UnitByUnit
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import Question, left_out_for, read_images
from data_engine.questions.given_rows import GivenAnswer
from data_engine.questions.images import BadImage, Decode, was_turned
from data_engine.questions.prefetch import ahead
from data_engine.questions.thoughts import ReadAnswer
from data_engine.store.units import UnitResult

FINISH_REASON = "given"
# The reason of a question that the file has no answer to. Such a row is no fault of the dataset.
NO_ANSWER = "no answer to it was given"


def runner(context: StageContext) -> UnitByUnit:
    """The runner of the stage of given answers."""
    return UnitByUnit(
        lambda work: given_unit(
            zip(work.questions, context.given.of_unit(work.number), strict=True), context.given.read,
            context.idx_type, context.config.max_megapixels, context.decode,
        )
    )  # fmt: skip


def given_unit(
    rows: Iterable[tuple[Question, list[GivenAnswer]]],
    read: Callable[[Conversation, GivenAnswer], ReadAnswer],
    idx_type: pa.DataType,
    max_megapixels: float,
    decode: Decode,
) -> UnitResult:
    """The answers to a unit's questions, in order; a row that cannot be used is left out with its reason.

    Pictures are decoded, so that those are left out which no model could be shown.
    """

    def look_at(row: tuple[Question, list[GivenAnswer]]) -> tuple[Question, list[GivenAnswer], str | None, int]:
        question, answers = row
        if not answers:
            return question, answers, NO_ANSWER, 0
        # Hashed here, in the thread that decodes.
        _ = question.digest
        try:
            return question, answers, None, sum(map(was_turned, read_images(question, max_megapixels, decode)))
        except (BadRow, BadImage) as problem:
            return left_out_for(question, problem), answers, str(problem), 0

    records, quarantined, missing, digests, turned = [], [], [], [], 0
    for question, answers, problem, turned_here in ahead(look_at, rows):
        turned += turned_here
        found = []
        if not problem:
            try:
                found = [read(question.conversation, answer) for answer in answers]
            except BadRow as wrong:
                problem = str(wrong)
        digests.append(None if problem else question.digest)
        if problem:
            is_missing = question.missing and problem != NO_ANSWER
            (missing if is_missing else quarantined).append((question.idx, problem))
            continue
        for index, (answer, one) in enumerate(zip(answers, found, strict=True)):
            records.append(
                {"idx": question.idx, "sample_index": index, "answer": one.text, "token_ids": answer.token_ids,
                 "finish_reason": FINISH_REASON, **one.thought_columns}
            )  # fmt: skip
    return UnitResult(schemas.sampled_answers(records, idx_type), quarantined, missing, digests, turned)
