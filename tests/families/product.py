"""The product's calls as the suite makes them, all in one place.

FAMILY_DEVICE=cuda runs the product on a GPU, and the job's sampling there by its kernels and captured steps; what it is
held against stays on the CPU.
"""

import os
from pathlib import Path

from asked import Asked
from torch import Tensor

DEVICE = os.environ.get("FAMILY_DEVICE", "cpu")


def load(folder: Path):
    """The model in this folder as one of the family auto, in fp32."""
    from data_engine import load_model

    return load_model("auto", str(folder), device=DEVICE, dtype="float32")


def _given(asked: Asked):
    """Pictures and question as sample_answers takes them."""
    images = asked.images()
    return (images[0] if len(images) == 1 else images or None), asked.question


def scores(model, asked: Asked, answers: list[list[int]]) -> list[Tensor]:
    """log p of each token of each answer."""
    from data_engine import score_answers

    return score_answers(model, *_given(asked), answers)


def sampled(model, asked: Asked, k: int, temperature: float, steps: int, seed: int = 0) -> list[list[int]]:
    """k answers' ids, drawn side by side; the key of answer i is seed_for(seed, "", i)."""
    from data_engine import sample_answers

    given = {"k": k, "seed": seed, "temperature": temperature, "top_k": 50, "max_new_tokens": steps}
    return [answer.token_ids for answer in sample_answers(model, *_given(asked), **given)]


def ragged(model, asked: list[Asked], lengths: list[list[int]], rows: int) -> list[list[list[int]]]:
    """Each question's answers at temperature 0.7, as long as `lengths` says, no more than `rows` of them at a time.

    By a job's back end, which takes the kernels where the device has them. The key of answer i to question q is
    seed_for(0, q, i). On the plain path, which refills no row, answers end by themselves.
    """
    from dataclasses import replace

    from data_engine.pipeline.public_arguments import read_question
    from data_engine.pipeline.sample import SampleSettings, request_for
    from data_engine.sampling.backend import BackendSettings, make_backend
    from data_engine.sampling.draw import SamplingParams
    from data_engine.sampling.native.kv_cache import num_slots

    # The first question that a model is given decides which path it takes.
    scores(model, asked[0], [[65]])
    params = SamplingParams(0.7, 50, 1.0, 1.0, max(map(max, lengths)), forced_lengths=is_fast(model))
    requests = []
    for number, (one, wanted) in enumerate(zip(asked, lengths, strict=True)):
        settings = SampleSettings(len(wanted), 0, params, crop=False, max_megapixels=64)
        request = request_for(model, *read_question(*_given(one), 64, "apply"), number, settings)
        requests.append(replace(request, lengths=wanted))
    k = len(lengths[0])
    settings = BackendSettings(model, params, k, rows, num_slots(rows, k))
    backend = make_backend("native" if is_fast(model) else "plain", settings)
    backend.submit(requests)
    answers = []
    while len(answers) < sum(map(len, lengths)):
        answers += backend.poll()
    found = {(one.request, one.sample_index): one.token_ids for one in answers}
    return [[found[number, index] for index in range(len(wanted))] for number, wanted in enumerate(lengths)]


def is_fast(model) -> bool:
    """Whether the model goes by the shared prefix, and not by the plain path."""
    return model.why_plain is None


def ends(model) -> list[int]:
    """Ids that end an answer."""
    return sorted(model.eos_token_ids)


def banned(model) -> list[int]:
    """Ids that are never sampled."""
    return sorted(model.banned_token_ids)


def is_hybrid(model) -> bool:
    """Whether layers carry a state from token to token; on the plain path, the product does not look at them."""
    from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

    return any(
        isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=model.text_config).layers
    )


def can_be_split(model, folder: Path) -> bool:
    """Whether --zero3 on takes the model."""
    from data_engine.models.auto.weights.splitting import check_split
    from data_engine.models.checkpoints.json_files import ModelError

    try:
        check_split(folder)
    except ModelError:
        return False
    return is_fast(model)
