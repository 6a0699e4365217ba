"""The log-probs that another engine drew answers with, held against those that the same model gives here.

Answers that were drawn behind another prompt, template or picture, or with other weights, are less likely under the
model that scores them: their log-probs differ by far more than rounding.
"""

from dataclasses import dataclass

import pyarrow as pa
import torch

from data_engine.errors import UserError

# Largest mean difference, nat a token.
TOLERANCE = {torch.float32: 0.05, torch.bfloat16: 0.2, torch.float16: 0.2}


@dataclass(frozen=True)
class Drawn:
    """How far two engines are apart over the answers of a unit, in nat a token."""

    mean: float
    worst: float
    """of one question's answers"""
    worst_idx: int | str


def check_drawn(sampled: pa.Table, theirs: list[float], scored: pa.Table, dtype: torch.dtype) -> Drawn | None:
    """Compare the sums of the answers' log-probs; `theirs` are in the order of `sampled`. None where none was scored.

    Raises UserError where the mean difference is no rounding.
    """
    ours = {(row["idx"], row["sample_index"]): (row["sum"], len(row["token_logps"])) for row in scored.select(
        ["idx", "sample_index", "sum", "token_logps"]).to_pylist()}  # fmt: skip
    by_idx: dict[int | str, list[float]] = {}
    for row, value in zip(sampled.select(["idx", "sample_index"]).to_pylist(), theirs, strict=True):
        if (row["idx"], row["sample_index"]) in ours:
            total, counted = ours[row["idx"], row["sample_index"]]
            by_idx.setdefault(row["idx"], []).append(abs(total - value) / counted)
    if not by_idx:
        return None
    every = [difference for differences in by_idx.values() for difference in differences]
    means = {idx: sum(differences) / len(differences) for idx, differences in by_idx.items()}
    worst = max(means, key=means.__getitem__)
    found = Drawn(sum(every) / len(every), means[worst], worst)
    if not found.mean <= TOLERANCE[dtype]:
        raise UserError(
            "vLLM drew these answers from another distribution than they are scored by: its log-probs are "
            f"{found.mean:.3g} nat a token off on average, more than {TOLERANCE[dtype]:g} allows for rounding in "
            f"{str(dtype).removeprefix('torch.')}. It saw another prompt, chat template or picture, or computes "
            f"otherwise (see vllm_args); the largest difference is that of row {worst!r}, {found.worst:.3g}. Remove "
            "the folder sampled_answer once that is mended, or leave --sampler out"
        )
    return found
