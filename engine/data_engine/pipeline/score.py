"""Stage 1: token log-probs of sampled answers under one model, for one unit or through the public API."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from data_engine import schemas, stages
from data_engine.errors import NO_ROOM, OUT_OF_MEMORY, BadRow, UserError
from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.models.memory_errors import naming_out_of_memory
from data_engine.pipeline.asked import Images, asked
from data_engine.pipeline.runner import StageContext, UnitByUnit, UnitWork
from data_engine.questions import images
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import Question, read_images
from data_engine.questions.images import BadImage, Decode, Exif
from data_engine.questions.prefetch import ahead
from data_engine.scoring.drawn_check import TOLERANCE, check_drawn
from data_engine.scoring.logprobs import Scored, pass_tokens, score_pass
from data_engine.scoring.self_check import self_check, settle
from data_engine.store.sealed import Sealed
from data_engine.store.units import Row, UnitResult

log = logging.getLogger(__name__)

# Tokens of one question beyond which its answers go through the model in several passes: ten answers of 8,192 tokens
# would keep some 80,000 tokens' activations at a time. Answers of up to 1,500 tokens, ten a question, stay together.
MOST_OF_A_QUESTION = 16384
# Questions that are scored once more where another engine drew their answers from other pixels.
DRAWN_CHECKED = 8


@dataclass(frozen=True)
class ScoreSettings:
    """What stage 1 depends on besides the model, the questions and their answers."""

    as_text: bool
    """answers go over as text, since the model has another tokenizer than the one that sampled; those that were given
    as text do so in any case"""
    max_megapixels: float
    crop: bool = True
    """the pixels of scoring, not of sampling"""
    tokens_a_pass: int = 0
    """questions go through the model together up to so many tokens, frozen in run.json; a question never waits"""


@dataclass(frozen=True)
class _Prepared:
    """A question that is ready for the model: its prompt, and the ids of its answers; or what is wrong with it."""

    question: Question
    rows: list[dict]
    prompt: Prompt | None = None
    ids: list[list[int]] | None = None
    thought_tokens: list[int] | None = None
    """how many ids of each answer stand before the counted ones"""
    tokens: int = 0
    problem: str | None = None


def runner(context: StageContext) -> UnitByUnit:
    """The runner of a stage of log-probs; the first unit with sound ones is checked against the plain path."""
    tokens = context.budgets["score_tokens"]
    settings = ScoreSettings(context.answers_as_text, context.config.max_megapixels, tokens_a_pass=tokens)
    check, drawn_check = True, _DrawnCheck(context, settings) if context.scores_own else None

    def compute(work: UnitWork) -> UnitResult:
        nonlocal check
        sampled, questions = work.inputs[stages.SAMPLING.name], iter(work.questions)
        kept = list(islice(questions, DRAWN_CHECKED)) if drawn_check and drawn_check.needed(sampled) else []
        result = score_unit(context.model, chain(kept, questions), sampled.table, settings, check, context.decode)
        if drawn_check:
            drawn_check.hold(sampled, result.table, kept)
        check = check and not result.table.num_rows
        return result

    return UnitByUnit(compute)


class _DrawnCheck:
    """Where another engine drew the answers, holds its log-probs against ours; the runner's `compute` calls it.

    Of a family that samples from other pixels than it scores by, the first questions of one unit are scored once more,
    by the pixels that were drawn from; of all others every unit is compared.
    """

    def __init__(self, context: StageContext, settings: ScoreSettings) -> None:
        self._model, self._decode = context.model, context.decode
        self._settings = replace(settings, crop=context.config.same_pixels)
        self._apart = context.model.samples_other_pixels and not context.config.same_pixels
        self._told = False

    def needed(self, sampled: Sealed) -> bool:
        """Whether questions have to be kept to be scored once more."""
        return self._apart and not self._told and "drawn" in sampled.facts

    def hold(self, sampled: Sealed, scored: pa.Table, kept: Sequence[Question]) -> None:
        """Raise UserError where the log-probs differ by more than rounding. `kept` are questions to score once more."""
        drawn = sampled.facts.get("drawn")
        if not drawn or (self._apart and not kept):
            return
        if kept:
            scored = score_unit(self._model, kept, sampled.table, self._settings, decode=self._decode).table
        found = check_drawn(sampled.table, drawn["logps"], scored, self._model.dtype)
        if found is None:
            return
        if not self._told:
            log.info("%s's log-probs of drawn tokens differ by %.1e nat a token on average", drawn["by"], found.mean)
        self._told = True
        if found.worst > TOLERANCE[self._model.dtype]:
            log.warning("row %r: %s's log-probs differ by %.3g nat a token", found.worst_idx, drawn["by"], found.worst)


def score_unit(
    model: VisionLanguageModel,
    questions: Iterable[Question],
    sampled: pa.Table,
    settings: ScoreSettings,
    check: bool = False,
    decode: Decode = images.decode,
) -> UnitResult:
    """Log-probs of all answers of a unit, in their order; a row that cannot be scored is left out with its reason.

    With `check`, the answers of the first question with sound log-probs are scored by the plain path too, and compared.
    """
    # An answer whose thought is not finished has nothing to count.
    rows = (row for row in sampled.to_pylist() if row["answer"] is not None)
    answers = {idx: list(group) for idx, group in groupby(rows, key=lambda row: row["idx"])}
    asked = ((question, answers[question.idx]) for question in questions if question.idx in answers)
    prepared = ahead(lambda item: _prepare(model, *item, settings, decode), asked)
    scored, quarantined, missing, too_large, retries = [], [], [], [], 0
    for together in _passes(prepared, settings.tokens_a_pass, (quarantined, missing)):
        results, halved = _score(model, together)
        retries += halved
        for one, result in zip(together, results, strict=True):
            if result is None:
                too_large.append((one.question.idx, OUT_OF_MEMORY))
                continue
            found = result
            broken = [index for index, answer in enumerate(found) if not answer.isfinite().all()]
            if broken:
                answer = one.rows[broken[0]]["sample_index"]
                reason = f"the model's log-probs are not finite (NaN or infinite): answer {answer}, counted from 0"
                quarantined.append((one.question.idx, reason))
                continue
            if check and not scored and not model.why_plain:
                difference = self_check(model, one.prompt, one.ids, found)
                log.info("self-check: shared and plain log-probs differ by %.1e nat a token on average", difference)
            counted = (logps[start:] for logps, start in zip(found, one.thought_tokens, strict=True))
            scored += ((row, logps) for row, logps in zip(one.rows, counted, strict=True) if len(logps))
    if check and too_large and not scored:
        raise UserError(NO_ROOM)
    quarantined += too_large
    table = pa.Table.from_pylist(list(_records(scored)), schemas.logps(sampled.schema.field("idx").type))
    return UnitResult(table, quarantined, missing, retries=retries)


def _prepare(
    model: VisionLanguageModel, question: Question, rows: list[dict], settings: ScoreSettings, decode: Decode
) -> _Prepared:
    try:
        pictures, conversation = read_images(question, settings.max_megapixels, decode), question.conversation
        prompt = model.prompt(conversation, pictures, settings.crop, settings.max_megapixels)
        both = [_answer_ids(model, conversation, row, settings.as_text) for row in rows]
        ids, thought_tokens = map(list, zip(*both, strict=True))
        require_room(model, prompt, ids)
    except (BadRow, BadImage) as problem:
        return _Prepared(question, rows, problem=str(problem))
    return _Prepared(question, rows, prompt, ids, thought_tokens, pass_tokens(prompt.length, ids))


def _answer_ids(
    model: VisionLanguageModel, conversation: Conversation, row: dict, as_text: bool
) -> tuple[list[int], int]:
    """The ids of a sampled or given answer, and how many of them are its thought; as text, it has none of its own.

    A thought goes over as text too, so that the answer is scored behind it. Raises BadRow for given ids that the model
    cannot score.
    """
    ids = row["token_ids"]
    if as_text or ids is None:
        return _encoded(model, conversation, f"{row.get('thought') or ''}{row['answer']}")
    if max(ids) >= model.num_ids:
        raise BadRow(f"answer {row['sample_index']} has the id {max(ids)}; the model has {model.num_ids} ids")
    if media := set(ids).intersection(model.banned_token_ids):
        raise BadRow(f"answer {row['sample_index']} has the id {min(media)}, which stands for a picture, film or sound")
    return ids, row.get("thought_tokens") or 0


def _encoded(model: VisionLanguageModel, conversation: Conversation, answer: str) -> tuple[list[int], int]:
    """Ids of an answer, and how many of them are its thought or what a template writes in the place of one."""
    ids = model.encode_answer(conversation, answer)
    return ids, model.read_answer(conversation, ids).thought_tokens


def _passes(
    prepared: Iterable[_Prepared], most_tokens: int, left_out: tuple[list[Row], list[Row]]
) -> Iterator[list[_Prepared]]:
    """Neighbours that fit a pass, one at least; those that cannot be scored go to `left_out`, the second if missing."""
    together: list[_Prepared] = []
    for one in prepared:
        if one.problem:
            left_out[one.question.missing].append((one.question.idx, one.problem))
            continue
        if together and sum(other.tokens for other in together) + one.tokens > most_tokens:
            yield together
            together = []
        together.append(one)
    if together:
        yield together


def _score(model: VisionLanguageModel, questions: list[_Prepared]) -> tuple[list[list[Tensor] | None], int]:
    """The log-probs of each question's answers; how often memory ran out.

    Where it does, questions, and then a question's answers, are scored in two halves, and so on; None for a question
    of which a single answer exceeds it. Many long answers to one question are so from the start.
    """
    if len(questions) == 1 and len(questions[0].ids) > 1 and _tokens(questions[0]) > MOST_OF_A_QUESTION:
        return _score_halves(model, questions[0])
    try:
        with naming_out_of_memory(model):
            return score_pass(model, [Scored(one.prompt, one.ids) for one in questions]), 0
    except torch.OutOfMemoryError:
        # Outside the handler, whose traceback would keep the pass's tensors.
        pass
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(questions) == len(questions[0].ids) == 1:
        return [None], 1
    log.warning("out of memory: %d questions are scored in two halves", len(questions))
    if len(questions) > 1:
        half = len(questions) // 2
        (first, one), (second, other) = _score(model, questions[:half]), _score(model, questions[half:])
        return first + second, 1 + one + other
    found, retries = _score_halves(model, questions[0])
    return found, 1 + retries


def _score_halves(model: VisionLanguageModel, question: _Prepared) -> tuple[list[list[Tensor] | None], int]:
    """The same of one question, its answers in two halves."""
    half = len(question.ids) // 2
    halves = [_score(model, [replace(question, ids=part)]) for part in (question.ids[:half], question.ids[half:])]
    [first], [second] = (found for found, _ in halves)
    return [first + second if first and second else None], sum(retries for _, retries in halves)


def _tokens(question: _Prepared) -> int:
    return pass_tokens(question.prompt.length, question.ids)


def _records(scored: Iterable[tuple[dict, Tensor]]) -> Iterator[dict]:
    for row, logps in scored:
        total = float(logps.double().sum())
        yield {
            "idx": row["idx"],
            "sample_index": row["sample_index"],
            "token_logps": logps.numpy(),
            "sum": total,
            "mean": total / len(logps),
        }


def score_answers(
    model: VisionLanguageModel,
    image: Images,
    question: str | Sequence[Mapping],
    answers: list[str] | list[list[int]],
    max_megapixels: float = 64,
    exif: Exif = "apply",
) -> list[Tensor]:
    """Log-probs of each answer's counted tokens, 1-D fp32, nats. `image` and `question` as for sample_answers.

    Token ids are scored as they are, nothing added, and all of them count. Text is encoded as in the training prompt,
    literally, and always counts its EOS; a thought before the answer does not count, nor anything of one that is not
    finished. Raises ValueError for an answer without ids, images.BadImage for an image that cannot be read, and
    BadRow for messages that the model does not take, and answers that are too long for it.
    """
    conversation, pictures = asked(image, question, max_megapixels, exif)
    prompt = model.prompt(conversation, pictures, True, max_megapixels)
    both = [_encoded(model, conversation, one) if isinstance(one, str) else (list(one), 0) for one in answers]
    if not both:
        return []
    found = _scored(model, prompt, [ids for ids, _ in both])
    return [logps[start:] for logps, (_, start) in zip(found, both, strict=True)]


def score_continuations(
    model: VisionLanguageModel,
    conversations: Sequence[Conversation],
    images: Sequence[Image.Image],
    continuations: Sequence[list[int]],
    max_megapixels: float = 64,
) -> list[Tensor]:
    """Log-probs of one continuation's tokens behind each conversation, 1-D fp32, nats; no end token is added.

    The conversations are about the same images, and may differ in the texts behind them: what they have in common is
    run once. Raises what VisionLanguageModel.shared_prompt raises.
    """
    prompt, tails = model.shared_prompt(conversations, images, True, max_megapixels)
    rows = [[*tail, *ids] for tail, ids in zip(tails, continuations, strict=True)]
    found = _scored(model, prompt, rows)
    return [logps[len(tail) :] for logps, tail in zip(found, tails, strict=True)]


def _scored(model: VisionLanguageModel, prompt: Prompt, ids: list[list[int]]) -> list[Tensor]:
    settle(model, prompt, max(map(len, ids)))
    require_room(model, prompt, ids)
    return score_pass(model, [Scored(prompt, ids)])[0]


def require_room(model: VisionLanguageModel, prompt: Prompt, ids: list[list[int]]) -> None:
    """Raise BadRow where an answer does not fit behind the prompt."""
    size, longest, room = prompt.length, max(map(len, ids)), model.max_positions
    if size + longest > room:
        raise BadRow(f"too long to score: prompt of {size} tokens, answer of {longest}, room for {room}")
