"""Stage 0: k answers a question from the instruct model, for one unit or through the public API."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image

from data_engine import images, records
from data_engine.ahead import ahead
from data_engine.dataset import Question
from data_engine.decode import BROKEN, Decoder, Request, Sampled, sample
from data_engine.images import BadImage
from data_engine.models.base import VisionLanguageModel, prefix, prefix_length
from data_engine.rows import BadRow, Decode, UnitResult, open_image, read_image
from data_engine.sampler import SamplingParams
from data_engine.seeds import seed_for


@dataclass(frozen=True)
class Answer:
    """One sampled answer; `token_ids` ends with EOS where the model ended ("stop"), not at "length"."""

    text: str
    token_ids: list[int]
    finish_reason: str


@dataclass(frozen=True)
class SampleSettings:
    """What stage 0 depends on besides the model and the questions."""

    k: int
    seed: int
    params: SamplingParams
    crop: bool
    """see the scoring stage's pixels"""
    max_megapixels: float


def request_for(
    model: VisionLanguageModel, image: Image.Image, question: str, idx: int | str, settings: SampleSettings
) -> Request:
    """Raises BadImage where the image does not fit, BadRow where the question does not."""
    pixels = model.pixels(image, settings.crop, settings.max_megapixels)
    size, new = prefix_length(model, question), settings.params.max_new_tokens
    if size + new > model.max_positions:
        raise BadRow(f"question too long: prompt of {size} tokens, {new} to generate, room for {model.max_positions}")
    keys = [seed_for(settings.seed, idx, sample_index) for sample_index in range(settings.k)]
    return Request(lambda: prefix(model, pixels, question), keys)


def sample_unit(
    decoder: Decoder,
    questions: Iterable[Question],
    idx_type: pa.DataType,
    settings: SampleSettings,
    decode: Decode = images.decode,
) -> UnitResult:
    """All answers of a unit's questions, in order; a row that cannot be used is left out with its reason."""
    asked, quarantined = [], []

    def prepare(question: Question) -> tuple[Question, Request | str]:
        try:
            image = read_image(question, settings.max_megapixels, decode)
            return question, request_for(decoder.model, image, question.question, question.idx, settings)
        except (BadRow, BadImage) as problem:
            return question, str(problem)

    def requests() -> Iterator[Request]:
        for question, prepared in ahead(prepare, questions):
            if isinstance(prepared, str):
                quarantined.append((question.idx, prepared))
            else:
                asked.append(question.idx)
                yield prepared

    sampled = decoder.sample(requests(), settings.params)
    broken = {found.request: found for found in reversed(sampled) if found.finish_reason == BROKEN}
    quarantined += [(asked[request], _broken(found)) for request, found in broken.items()]
    sampled = [found for found in sampled if found.request not in broken]
    columns = {
        "idx": [asked[found.request] for found in sampled],
        "sample_index": [found.sample_index for found in sampled],
        "answer": [decoder.model.text(found.token_ids) for found in sampled],
        "token_ids": [found.token_ids for found in sampled],
        "finish_reason": [found.finish_reason for found in sampled],
    }
    return UnitResult(pa.table(columns, records.sampled_answer(idx_type)), quarantined, decoder.retries)


def _broken(found: Sampled) -> str:
    return (
        f"the model's logits are not finite (NaN or infinite): answer {found.sample_index}, "
        f"token {len(found.token_ids)}, both counted from 0"
    )


def sample_answers(
    model: VisionLanguageModel,
    image: Image.Image | bytes,
    question: str,
    k: int = 10,
    seed: int = 0,
    idx: int | str = "",
    temperature: float = 0.7,
    top_k: int = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    max_new_tokens: int = 512,
    max_megapixels: float = 64,
) -> list[Answer]:
    """k answers to one image-question; the same (seed, idx) gives the same answers.

    `image` is a PIL image or encoded bytes. Raises images.BadImage, a ValueError, for an image that cannot be
    read, and ArithmeticError where the model gives logits that are NaN or infinite.
    """
    params = SamplingParams(temperature, top_k, top_p, repetition_penalty, max_new_tokens)
    settings = SampleSettings(k, seed, params, crop=False, max_megapixels=max_megapixels)
    request = request_for(model, open_image(image, max_megapixels), question, idx, settings)
    return [answer_of(model, found) for found in sample(model, [request], params, num_rows=k)]


def answer_of(model: VisionLanguageModel, found: Sampled) -> Answer:
    if found.finish_reason == BROKEN:
        raise ArithmeticError(_broken(found))
    return Answer(model.text(found.token_ids), found.token_ids, found.finish_reason)
