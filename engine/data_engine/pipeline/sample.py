"""Stage 0: k answers a question from the instruct model, unit by unit or through the public API."""

import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from PIL import Image

from data_engine import errors, schemas
from data_engine.config import RunConfig
from data_engine.config_checks import check_values, require_whole
from data_engine.errors import BadRow, UserError
from data_engine.flags import require
from data_engine.models.base import VisionLanguageModel
from data_engine.models.prompt_maker import PromptMaker
from data_engine.pipeline.public_arguments import Images, read_question, require_model
from data_engine.pipeline.runner import StageContext, UnitWork
from data_engine.questions import images
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import Question, left_out_for, read_images
from data_engine.questions.images import BadImage, Decode, Exif, was_turned
from data_engine.questions.prefetch import ahead
from data_engine.sampling.backend import BackendSettings, SamplingBackend, make_backend
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.backend import sample_one
from data_engine.sampling.requests import BROKEN, TOO_LARGE, Completion, PromptRequest
from data_engine.scoring.self_check import settle
from data_engine.seeds import seed_for
from data_engine.store.units import Row, UnitResult

# The back end of a run, of sampling.backend.BACKENDS.
BACKEND = "native"
# What answers are drawn from: a model here, or another engine's.
Sampled = VisionLanguageModel | PromptMaker


@dataclass(frozen=True)
class Answer:
    """One sampled answer; `token_ids` ends with EOS where the model ended ("stop"), not at "length"."""

    text: str | None
    """behind the thought of a model that thinks; None where that is not finished"""
    token_ids: list[int]
    finish_reason: str
    thought_tokens: int = 0
    """the first so many of token_ids are the thought, its mark included"""


@dataclass(frozen=True)
class SampleSettings:
    """What stage 0 depends on besides the model and the questions."""

    k: int
    seed: int
    params: SamplingParams
    crop: bool
    """see the scoring stage's pixels"""
    max_megapixels: float


def runner(context: StageContext) -> "SamplingRunner":
    """The runner of the sampling stage."""
    model, settings, sizes = context.model, settings_of(context.config), context.budgets
    backend = make_backend(
        "plain" if model.why_plain else BACKEND,
        BackendSettings(
            model, settings.params, settings.k, sizes["decode_rows"], sizes["decode_slots"], split=context.split,
            num_pages=sizes.get("decode_pages", 0), require_fast=context.config.require_fast,
        ),
    )  # fmt: skip
    return SamplingRunner(backend, model, context.idx_type, settings, context.decode)


def vllm_runner(context: StageContext) -> "SamplingRunner":
    """The runner of the stage of answers that vLLM draws; its units say with which log-probs, for the scoring stage."""
    config, model, settings = context.config, context.model, settings_of(context.config)
    options = {"args": config.vllm_options, "dtype": context.target.dtype_name, "seed": config.seed}
    # How many answers at a time, vLLM knows itself.
    backend = make_backend("vllm", BackendSettings(model, settings.params, settings.k, 0, 0, options=options))
    model.max_positions = min(model.max_positions, backend.max_positions)
    return SamplingRunner(backend, model, context.idx_type, settings, context.decode, backend.told)


def settings_of(config: RunConfig) -> SampleSettings:
    """What the configuration says of sampling."""
    params = SamplingParams(
        config.temperature, config.top_k, config.top_p, config.repetition_penalty, config.max_new_tokens
    )
    return SampleSettings(config.sample_k, config.seed, params, config.same_pixels, config.max_megapixels)


def request_for(
    model: Sampled,
    conversation: Conversation,
    pictures: Sequence[Image.Image],
    idx: int | str,
    settings: SampleSettings,
) -> PromptRequest:
    """Raises BadImage where an image does not fit, BadRow where the conversation does not."""
    prompt = model.prompt(conversation, pictures, settings.crop, settings.max_megapixels)
    new = settings.params.max_new_tokens
    settle(model, prompt, new)
    if prompt.length + new > model.max_positions:
        room = model.max_positions
        raise BadRow(f"question too long: prompt of {prompt.length} tokens, {new} to generate, room for {room}")
    keys = [seed_for(settings.seed, idx, sample_index) for sample_index in range(settings.k)]
    return PromptRequest(prompt, keys)


@dataclass
class _Unit:
    """A unit in the making; its requests are numbered from `first` on."""

    number: int
    first: int
    taken: bool = False
    """whether all its questions have been looked at"""
    asked: list[tuple[int | str, Conversation]] = field(default_factory=list)
    quarantined: list[Row] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    rows: list[str | None] = field(default_factory=list)
    """digests of its questions"""
    found: list[Completion] = field(default_factory=list)
    turned: int = 0
    """pictures that were turned upright"""

    def finished(self, k: int) -> bool:
        return self.taken and len(self.found) == k * len(self.asked)

    def result(self, model: Sampled, idx_type: pa.DataType, halvings: int, told: Mapping | None) -> UnitResult:
        """`told` is what another engine says of all its answers; the sums of their log-probs come beside it."""
        self.found.sort(key=lambda found: (found.request, found.sample_index))
        left_out = {found.request: found for found in reversed(self.found) if found.finish_reason in LEFT_OUT}
        reasons = [(self._idx(found), LEFT_OUT[found.finish_reason](found)) for found in left_out.values()]
        kept = [found for found in self.found if found.request not in left_out]
        answers = [self._read(model, found) for found in kept]
        table = schemas.sampled_answers(answers, idx_type)
        # Of the counted tokens, as the scoring stage has them.
        parts = zip(kept, answers, strict=True)
        drawn = {} if told is None else {**told, "logps": [sum(found.logps[row["thought_tokens"] or 0 :])
                                                           for found, row in parts]}  # fmt: skip
        return UnitResult(table, self.quarantined + reasons, self.missing, self.rows, self.turned, halvings, drawn)

    def _read(self, model: Sampled, found: Completion) -> dict:
        """The row of an answer."""
        idx, conversation = self.asked[found.request - self.first]
        read = model.read_answer(conversation, found.token_ids)
        return {
            "idx": idx, "sample_index": found.sample_index, "answer": read.text, "token_ids": found.token_ids,
            "finish_reason": found.finish_reason, **read.thought_columns,
        }  # fmt: skip

    def _idx(self, found: Completion) -> int | str:
        return self.asked[found.request - self.first][0]


class SamplingRunner:
    """Samples units by a back end: their questions' requests go in, and units come out as their last answers end.

    A row that cannot be used is left out with its reason. Images are decoded ahead of their turn.
    """

    def __init__(
        self,
        backend: SamplingBackend,
        model: Sampled,
        idx_type: pa.DataType,
        settings: SampleSettings,
        decode: Decode = images.decode,
        told: Callable[[], Mapping] | None = None,
    ) -> None:
        """`told` gives what another engine's units say of it; their completions have log-probs."""
        self._backend, self._model, self._idx_type, self._settings = backend, model, idx_type, settings
        self._decode, self._told = decode, told
        self._units: list[_Unit] = []
        self._num_requests = 0

    @property
    def wants_more(self) -> bool:
        return self._backend.wants_more

    def submit(self, work: UnitWork) -> None:
        self._backend.submit(self._requests(work))

    def poll(self) -> list[tuple[int, UnitResult]]:
        for found in self._backend.poll():
            # The units' requests follow each other, so the last unit that begins before it has it.
            next(unit for unit in reversed(self._units) if unit.first <= found.request).found.append(found)
        finished = [unit for unit in self._units if unit.finished(self._settings.k)]
        for unit in finished:
            self._units.remove(unit)
        halvings, told = self._backend.halvings, None if self._told is None else self._told()
        return [(unit.number, unit.result(self._model, self._idx_type, halvings, told)) for unit in finished]

    def close(self) -> None:
        self._backend.close()
        self._units.clear()

    def _requests(self, work: UnitWork) -> Iterator[PromptRequest]:
        unit = _Unit(work.number, self._num_requests)
        self._units.append(unit)
        for question, prepared, turned in ahead(self._prepare, work.questions):
            unit.turned += turned
            # Nothing is made of a row that is left out.
            unit.rows.append(None if isinstance(prepared, str) else question.digest)
            if isinstance(prepared, str):
                (unit.missing if question.missing else unit.quarantined).append((question.idx, prepared))
            else:
                unit.asked.append((question.idx, question.conversation))
                self._num_requests += 1
                yield prepared
        unit.taken = True

    def _prepare(self, question: Question) -> tuple[Question, PromptRequest | str, int]:
        """The question; its request, or why there is none; how many of its pictures were turned upright."""
        # Hashed here, in the thread that decodes.
        _ = question.digest
        try:
            pictures = read_images(question, self._settings.max_megapixels, self._decode)
            request = request_for(self._model, question.conversation, pictures, question.idx, self._settings)
            return question, request, sum(map(was_turned, pictures))
        except (BadRow, BadImage) as problem:
            return left_out_for(question, problem), str(problem), 0


def sample_unit(runner: SamplingRunner, questions: Iterable[Question]) -> UnitResult:
    """All answers of a unit's questions, in order; a row that cannot be used is left out with its reason."""
    runner.submit(UnitWork(0, questions, {}))
    while not (finished := runner.poll()):
        pass
    [(_, result)] = finished
    return result


def _broken(found: Completion) -> str:
    return (
        f"the model's logits are not finite (NaN or infinite): answer {found.sample_index}, "
        f"token {len(found.token_ids)}, both counted from 0"
    )


# What is said of a question that is left out because of an answer's finish_reason.
LEFT_OUT = {BROKEN: _broken, TOO_LARGE: lambda _: errors.OUT_OF_MEMORY}


def sample_answers(
    model: VisionLanguageModel,
    image: Images,
    question: str | Sequence[Mapping],
    k: int = 10,
    seed: int = 0,
    idx: int | str = "",
    temperature: float = 0.7,
    top_k: int = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    max_new_tokens: int = 512,
    max_megapixels: float = 64,
    exif: Exif = "apply",
) -> list[Answer]:
    """k answers to one image-question; the same (seed, idx) gives the same answers.

    `image` is a PIL image or encoded bytes, or a list of them, or None; an EXIF orientation is applied, unless exif is
    "ignore". `question` may also be chat messages. Raises images.BadImage, a ValueError, for an image that cannot be
    read, BadRow for messages that the model does not take, ArithmeticError where the model gives logits that are NaN or
    infinite, and UserError for values out of range and where memory runs out with one answer at a time.
    """
    require_model(model)
    require_whole(k=k, seed=seed, top_k=top_k, max_new_tokens=max_new_tokens)
    require(isinstance(idx, str | numbers.Integral), f"idx must be text or a whole number, got {idx!r}")
    check_values(
        temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens, max_megapixels=max_megapixels,
    )  # fmt: skip
    require(k >= 1, f"k must be at least 1, got {k}")
    params = SamplingParams(temperature, top_k, top_p, repetition_penalty, max_new_tokens)
    settings = SampleSettings(k, seed, params, crop=False, max_megapixels=max_megapixels)
    conversation, pictures = read_question(image, question, max_megapixels, exif)
    request = request_for(model, conversation, pictures, idx, settings)
    if not model.why_plain:
        found = sample_one(model, request, params)
    else:
        backend = make_backend("plain", BackendSettings(model, params, k, num_rows=k, num_slots=1))
        backend.submit([request])
        found = backend.poll()
    return [answer_of(model, conversation, one) for one in found]


def answer_of(model: VisionLanguageModel, conversation: Conversation, found: Completion) -> Answer:
    if found.finish_reason == BROKEN:
        raise ArithmeticError(_broken(found))
    if found.finish_reason == TOO_LARGE:
        raise UserError(errors.OUT_OF_MEMORY)
    read = model.read_answer(conversation, found.token_ids)
    return Answer(read.text, found.token_ids, found.finish_reason, read.thought_tokens)
