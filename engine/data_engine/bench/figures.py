"""From measured seconds to the figures that a bench reports: ratios, rates, least times, the estimate for a dataset."""

import statistics

import torch
from torch import nn

from data_engine.bench.model import Sizes, Subject
from data_engine.bench.ways import ALL_WAYS
from data_engine.models.base import VisionLanguageModel


def ratios(measured: dict[str, dict]) -> dict[str, float]:
    """The engine's tokens a second over those of each other way: the median over rounds of the ratio within a round,
    since a slower minute slows down both."""
    found = {}
    for name, one in measured.items():
        if not name.startswith("engine"):
            work = ALL_WAYS[name].work
            engine = next(m for n, m in measured.items() if n.startswith("engine") and ALL_WAYS[n].work == work)
            speed_up = engine["tokens"] / one["tokens"]
            found[name] = speed_up * statistics.median(
                stock / ours for stock, ours in zip(one["seconds"], engine["seconds"], strict=False)
            )
    return found


def one_queue_gain(measured: dict[str, dict]) -> float:
    """Seconds of two units sampled one after the other, as on a CPU, over those from one queue, as on a GPU; of the
    rounds that have both."""
    pairs = zip(measured["engine, two units"]["seconds"], measured["engine, drawn lengths"]["seconds"], strict=False)
    return statistics.median(one_by_one / ahead for one_by_one, ahead in pairs)


def questions_a_second(measured: dict[str, dict], sizes: Sizes) -> dict[str, float]:
    """Of the engine's ways, which do whole questions."""
    count = {"engine, sampling": sizes.questions}
    if scoring := measured.get("engine, scoring"):
        count["engine, scoring"] = scoring["tokens"] // (sizes.k * sizes.answer_tokens)
    return {
        name: count.get(name, sizes.drawn_questions) / statistics.median(one["seconds"])
        for name, one in measured.items()
        if name.startswith("engine")
    }


def least_seconds(subject: Subject, peak: dict[str, float]) -> dict[str, float]:
    """The least seconds of the engine's two ways with fixed lengths, by the ceilings of this machine.

    Multiplications of the decoder and the head, two FLOP each; while decoding, every step reads the weights and all
    caches, or multiplies, whichever takes longer. The tower, the scores of attention and recurrent states are left out;
    experts count as if each token went through all of them.
    """
    sizes, model = subject.sizes, subject.engine
    prefix, item = subject.prefix_tokens, model.head.weight.element_size()
    weights, head = multiplied(model.decoder), model.head.weight.numel()
    cached = cached_token_bytes(model)
    answers = sizes.k * sizes.answer_tokens
    scoring = len(subject.answers_BKL) * 2 * (weights * (prefix + answers - sizes.k) + head * answers)
    rows, steps = sizes.questions * sizes.k, sizes.new_tokens - 1
    prefill = sizes.questions * 2 * weights * prefix / peak["matmul_flops"]
    read = (weights + head) * item + sizes.questions * prefix * cached + rows * steps / 2 * cached
    step = max(2 * (weights + head) * rows / peak["matmul_flops"], read / peak["read_bytes"])
    return {"engine, scoring": scoring / peak["matmul_flops"], "engine, sampling": prefill + steps * step}


def multiplied(decoder: nn.Module) -> int:
    """Weights that each token is multiplied with: all but embeddings, of which it reads one."""
    looked_up = sum(part.weight.numel() for part in decoder.modules() if isinstance(part, nn.Embedding))
    return sum(weight.numel() for weight in decoder.parameters()) - looked_up


def cached_token_bytes(model: VisionLanguageModel) -> int:
    """Keys and values of one token, all layers."""
    return sum(kind.values_per_token for kind in model.layers) * model.head.weight.element_size()


def estimate(questions: int, seconds_per_question: float, bytes_per_question: float, device: torch.device) -> dict:
    """What a dataset of `questions` would take on one rank of this machine, at the pace of the whole job."""
    hours = questions * seconds_per_question / 3600
    return {
        "questions": questions,
        "hours": hours,
        "gpu_hours": hours if device.type == "cuda" else None,
        "disk_bytes": questions * bytes_per_question,
    }
