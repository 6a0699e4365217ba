"""Stage 1: token log-probs of sampled answers under one model, for one unit or through the public API."""

import functools
import logging
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain, islice

import pyarrow as pa
from torch import Tensor

from data_engine import schemas, stages
from data_engine.config_checks import check_values
from data_engine.errors import BadRow, UserError
from data_engine.flags import require
from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.pipeline.passes import AnswerRunner, Computed, compute_unit
from data_engine.pipeline.public_arguments import Images, read_question, require_model, require_unicode
from data_engine.pipeline.runner import StageContext, UnitWork
from data_engine.pipeline.works import Behind, lacks_room, require_room
from data_engine.questions import images
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import Question, read_images
from data_engine.questions.images import Decode, Exif
from data_engine.scoring.drawn_check import TOLERANCE, check_drawn
from data_engine.scoring.logprobs import Scored, pass_tokens, score_pass
from data_engine.scoring.self_check import self_check, settle
from data_engine.store.sealed import Sealed
from data_engine.store.units import UnitResult

log = logging.getLogger(__name__)

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
    blind: bool = False
    """the prompts have no images; answers to a question that never had one have no log-probs then"""
    tokens_a_pass: int = 0
    """questions go through the model together up to so many tokens, frozen in run.json; a question never waits"""


def runner(context: StageContext) -> AnswerRunner:
    """The runner of a stage of log-probs."""
    tokens = context.budgets["score_tokens"]
    settings = ScoreSettings(context.answers_as_text, context.config.max_megapixels, tokens_a_pass=tokens)
    if context.scores_own:
        return _DrawnRunner(context, settings)
    return AnswerRunner(LogProbs(context.model, settings, context.decode), tokens, _unit, split=context.split)


def blind_runner(context: StageContext) -> AnswerRunner:
    """The runner of the stage of log-probs without images, of the same ids as with them."""
    tokens = context.budgets["score_tokens"]
    settings = ScoreSettings(context.answers_as_text, context.config.max_megapixels, blind=True, tokens_a_pass=tokens)
    scorer = LogProbs(context.model, settings, context.decode)
    return AnswerRunner(scorer, tokens, functools.partial(_unit, nulls=True), split=context.split)


class _DrawnRunner(AnswerRunner):
    """The runner for the model that drew the answers; where another engine ran it, both's log-probs are compared."""

    def __init__(self, context: StageContext, settings: ScoreSettings) -> None:
        scorer = LogProbs(context.model, settings, context.decode)
        super().__init__(scorer, settings.tokens_a_pass, self._held, split=context.split)
        self._drawn_check = _DrawnCheck(context, settings)
        # Of each unit in hand, by number.
        self._kept: dict[int, list[Question]] = {}

    def submit(self, work: UnitWork) -> None:
        needed, questions = self._drawn_check.needed(work.inputs[stages.SAMPLING.name]), iter(work.questions)
        kept = self._kept[work.number] = list(islice(questions, DRAWN_CHECKED)) if needed else []
        super().submit(replace(work, questions=chain(kept, questions)))

    def _held(self, work: UnitWork, found: Computed) -> UnitResult:
        result, sampled = _unit(work, found), work.inputs[stages.SAMPLING.name]
        kept = self._kept.pop(work.number)
        # The unit before may have told meanwhile what they were kept for.
        self._drawn_check.hold(sampled, result.table, kept if self._drawn_check.needed(sampled) else [])
        return result


class _DrawnCheck:
    """Where another engine drew the answers, holds its log-probs against ours.

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


@dataclass(frozen=True)
class LogProbs:
    """Token log-probs of answers; the protocol is works.Scorer."""

    model: VisionLanguageModel
    settings: ScoreSettings
    decode: Decode = images.decode
    what = "log-probs"

    def prepare(self, question: Question, rows: list[dict]) -> Behind | None:
        prompt = self._prompt(question)
        if prompt is None:
            return None
        both = [_answer_ids(self.model, question.conversation, row, self.settings.as_text) for row in rows]
        too_long = {place: told for place, (ids, _) in enumerate(both) if (told := lacks_room(self.model, prompt, ids))}
        if len(too_long) == len(both):
            raise BadRow(too_long[0])
        ids, thought_tokens = map(list, zip(*(one for n, one in enumerate(both) if n not in too_long), strict=True))
        return Behind(Scored(prompt, ids), pass_tokens(prompt.length, ids), thought_tokens, too_long)

    def _prompt(self, question: Question) -> Prompt | None:
        """None where a question without an image would be asked without one."""
        most = self.settings.max_megapixels
        if not self.settings.blind:
            pictures = read_images(question, most, self.decode)
            return self.model.prompt(question.conversation, pictures, self.settings.crop, most)
        if question.problem:
            raise BadRow(question.problem)
        # Pictures that the model is not shown are not decoded.
        return self.model.prompt_without_images(question.conversation) if question.images else None

    def compute(self, works: Sequence[Behind]) -> list[list[Tensor]]:
        return score_pass(self.model, [work.scored for work in works])

    def check(self, work: Behind, found: list[Tensor]) -> None:
        difference = self_check(self.model, work.scored.prompt, work.scored.answers, found)
        log.info("self-check: shared and plain log-probs differ by %.1e nat a token on average", difference)


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
    found = compute_unit(LogProbs(model, settings, decode), questions, sampled, settings.tokens_a_pass, check)
    return _result(found, sampled, settings.blind)


def _unit(work: UnitWork, found: Computed, nulls: bool = False) -> UnitResult:
    return _result(found, work.inputs[stages.SAMPLING.name].table, nulls)


def _result(found: Computed, sampled: pa.Table, nulls: bool) -> UnitResult:
    """A unit of what was computed; with `nulls`, an answer without a number has a row, too.

    Without pictures, a question that has none gives a null; an answer that is nothing but a thought has no row.
    """
    scored = (one for one in found.scored if nulls or one[1] is not None)
    table = pa.Table.from_pylist(list(_records(scored)), schemas.logps(sampled.schema.field("idx").type))
    return found.result(table)


def _answer_ids(
    model: VisionLanguageModel, conversation: Conversation, row: dict, as_text: bool
) -> tuple[list[int], int]:
    """The ids of a sampled or given answer, and how many of them are its thought; as text, it has none of its own.

    A thought goes over as text too, so that the answer is scored behind it. Raises BadRow for given ids that the model
    cannot score.
    """
    ids = row["token_ids"]
    if as_text or ids is None:
        found, thought_tokens = _encoded(model, conversation, f"{row.get('thought') or ''}{row['answer']}")
        # One that was cut off has no end token under the model that drew it, and so none here. Nothing is left of "".
        was_cut = row["finish_reason"] == "length" and len(found) > thought_tokens + 1
        return (found[:-1] if was_cut else found), thought_tokens
    _require_known(model, ids, row["sample_index"])
    return ids, row.get("thought_tokens") or 0


def _require_known(model: VisionLanguageModel, ids: list[int], place: int) -> None:
    """Raise BadRow for ids of an answer that the model cannot score."""
    if not ids:
        raise BadRow(f"answer {place} has no ids, and so no log-probs")
    if min(ids) < 0:
        raise BadRow(f"answer {place} has the id {min(ids)}; ids are whole numbers from 0 on")
    if max(ids) >= model.num_ids:
        raise BadRow(f"answer {place} has the id {max(ids)}; the model has {model.num_ids} ids")
    if media := set(ids).intersection(model.banned_token_ids):
        raise BadRow(f"answer {place} has the id {min(media)}, which stands for a picture, film or sound")


def _encoded(model: VisionLanguageModel, conversation: Conversation, answer: str) -> tuple[list[int], int]:
    """Ids of an answer, and how many of them are its thought or what a template writes in the place of one."""
    ids = model.encode_answer(conversation, answer)
    if max(ids) >= model.num_ids:
        raise BadRow(f"an answer has the id {max(ids)} of its tokenizer; the model has {model.num_ids} ids")
    return ids, model.read_answer(conversation, ids).thought_tokens


def _records(scored: Iterable[tuple[dict, Tensor | None]]) -> Iterator[dict]:
    for row, logps in scored:
        record = {"idx": row["idx"], "sample_index": row["sample_index"]}
        if logps is not None:
            total = float(logps.double().sum())
            record |= {"token_logps": logps.numpy(), "sum": total, "mean": total / len(logps)}
        yield record


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
    finished. Raises images.BadImage for an image that cannot be read, BadRow for messages that the model does not take,
    and answers that are too long for it or have ids that it has not, and UserError for what are no answers, and values
    out of range.
    """
    require_model(model)
    check_values(max_megapixels=max_megapixels)
    expected = "answers must be a list of texts, or of lists of ids; got"
    require(not isinstance(answers, str), f"{expected} one text")
    require(_is_list(answers), f"{expected} {type(answers).__name__}")
    answers = list(answers)
    for one in answers:
        require(_is_list(one), f"{expected} one of {type(one).__name__}")
        if isinstance(one, str):
            require_unicode("an answer", one)
    conversation, pictures = read_question(image, question, max_megapixels, exif)
    prompt = model.prompt(conversation, pictures, True, max_megapixels)
    both = [
        _encoded(model, conversation, one) if isinstance(one, str) else (_whole(model, one, place), 0)
        for place, one in enumerate(answers)
    ]
    if not both:
        return []
    ids = [one for one, _ in both]
    settle(model, prompt, max(map(len, ids)))
    require_room(model, prompt, ids)
    [found] = score_pass(model, [Scored(prompt, ids)])
    return [logps.cpu()[start:] for logps, (_, start) in zip(found, both, strict=True)]


def _is_list(value: object) -> bool:
    """Whether it has items in an order, of whatever library.

    Each byte of a text that was not decoded would be scored as the id of a token, and each key of a dict as an answer.
    """
    if isinstance(value, bytes | bytearray | memoryview | Mapping | Set):
        return False
    try:
        iter(value)
    except TypeError:
        # An array without dimensions, too.
        return False
    return True


def _whole(model: VisionLanguageModel, ids: Iterable, place: int) -> list[int]:
    """The ids of an answer, of whatever library's whole numbers. Raises UserError where one is none."""
    found = list(ids)
    try:
        whole = [operator.index(one) for one in found]
    except TypeError:
        raise UserError(f"answer {place}, counted from 0, has ids that are no whole numbers: {found[:5]}") from None
    _require_known(model, whole, place)
    return whole
