"""What the machine of a bench could do at most, and what a run took of it: ceilings, memory, the estimate."""

import contextlib
import os
import time
from pathlib import Path

import torch

from data_engine.bench.model import Subject
from data_engine.models.base import VisionLanguageModel
from data_engine.models.decoder import cache_values_per_token
from data_engine.sampling.memory import ACTIVATIONS, Needs, budgets, memory_bytes, peak_bytes


def settled(device: torch.device) -> float:
    """The time, when all that was launched is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The best of several: matrix product, FLOP/s, and reading a large buffer, bytes/s."""
    side = 8192 if device.type == "cuda" else 2048
    square = torch.randn(side, side, device=device).to(dtype)
    buffer = torch.zeros((4 << 30 if device.type == "cuda" else 256 << 20) // 4, device=device)
    best = {}
    for name, work, call in (
        ("matmul_flops", 2 * side**3, lambda: square @ square),
        ("read_bytes", buffer.numel() * 4, buffer.sum),
    ):
        seconds = []
        for _ in range(6):
            start = settled(device)
            call()
            seconds.append(settled(device) - start)
        best[name] = work / min(seconds)
    return best


def least_seconds(subject: Subject, peak: dict[str, float]) -> dict[str, float]:
    """Seconds that the engine's two fixed works take at least on this machine, by its ceilings.

    Multiplications of the decoder and the head, two FLOP each; while decoding, every step reads the weights and all
    caches, or multiplies, whichever takes longer. The tower and the scores of attention are left out.
    """
    sizes, model = subject.sizes, subject.engine
    prefix, item = len(subject.prompt_P), model.head_weight.element_size()
    embeddings = model.decoder.embed_tokens.weight.numel()
    weights, head = sum(p.numel() for p in model.decoder.parameters()) - embeddings, model.head_weight.numel()
    cached = cached_token_bytes(model)
    answers = sizes.k * sizes.answer_tokens
    scoring = len(subject.answers_BKL) * 2 * (weights * (prefix + answers - sizes.k) + head * answers)
    rows, steps = sizes.questions * sizes.k, sizes.new_tokens - 1
    prefill = sizes.questions * 2 * weights * prefix / peak["matmul_flops"]
    read = (weights + head) * item + sizes.questions * prefix * cached + rows * steps / 2 * cached
    step = max(2 * (weights + head) * rows / peak["matmul_flops"], read / peak["read_bytes"])
    return {"engine, scoring": scoring / peak["matmul_flops"], "engine, sampling": prefill + steps * step}


def cached_token_bytes(model: VisionLanguageModel) -> int:
    """Keys and values of one token, all layers."""
    return cache_values_per_token(model.decoder.config) * model.head_weight.element_size()


def loop_budgets(model: VisionLanguageModel, k: int, max_new_tokens: int) -> dict[str, int]:
    """What `run` would give the loops of the memory that is left, with all models of the bench loaded."""
    activated = ACTIVATIONS * model.decoder.config.hidden_size * model.head_weight.element_size()
    needs = Needs(weights=0, cached_token=cached_token_bytes(model), activated_token=activated)
    return budgets(memory_bytes(model.device, 0.9), needs, model.device.type, k, max_new_tokens)


class PeakMemory:
    """The most memory at one time since `start`, bytes: of the GPU's tensors, or of this process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        # Linux: the peak of the resident set starts anew.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int | None:
        return peak_bytes(self.device) or None


def estimate(questions: int, seconds_per_question: float, bytes_per_question: float, device: torch.device) -> dict:
    """What a dataset of `questions` would take on one rank of this machine, at the pace of the whole job."""
    hours = questions * seconds_per_question / 3600
    return {
        "questions": questions,
        "hours": hours,
        "gpu_hours": hours if device.type == "cuda" else None,
        "disk_bytes": questions * bytes_per_question,
    }


def machine(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else os.uname().machine
    return {"device": name, "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}
