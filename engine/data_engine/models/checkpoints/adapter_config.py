"""adapter_config.json of peft: which adapters can be merged, and by what factor each of their matrices. No torch."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_engine.models.checkpoints.json_files import ModelError, read_json

CONFIG = "adapter_config.json"
# What a message advises where an adapter is more than matrices to be added.
INSTEAD = "merge it into its base with peft's merge_and_unload, save that, and pass its folder"

# Fields that make an adapter another thing than W + scale B A, and what that is called.
_OTHER_KINDS = {
    "use_dora": "DoRA", "lora_bias": "biases of its own", "trainable_token_indices": "trainable tokens",
    "target_parameters": "target_parameters", "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA", "use_qalora": "QA-LoRA", "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow", "kasa_config": "KaSA",
}  # fmt: skip
# Beginnings that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) train beside a changed base,
# which is not the one that is named.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# Fields that say how it was trained, or what is seen from the weights themselves.
_OF_TRAINING = frozenset((
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
))  # fmt: skip


def check_settings(where: Path) -> dict:
    """The fields of an adapter_config.json. Raises ModelError naming what cannot be merged."""
    raw = read_json(where)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{where} has peft_type {kind!r}: of adapters, LORA alone is merged. For this one, {INSTEAD}")
    for field, what in _OTHER_KINDS.items():
        if raw.get(field):
            raise ModelError(f"{where} has {field} {raw[field]!r}: {what} is not merged here; {INSTEAD}")
    if raw.get("bias", "none") != "none":
        raise ModelError(f"{where} has bias {raw['bias']!r}: trained biases are not merged here; {INSTEAD}")
    start = raw.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise ModelError(
            f"{where} has init_lora_weights {start!r}: such an adapter was trained beside a changed base, and is not "
            f"merged here; {INSTEAD}"
        )
    unknown = sorted(name for name, value in raw.items() if value and name not in (*_OF_TRAINING, *_OTHER_KINDS))
    if unknown:
        raise ModelError(
            f"{where} has {unknown[0]} {raw[unknown[0]]!r}, whose meaning is not known here; if it only tells of "
            f"training, take it out, else {INSTEAD}"
        )
    Scales.of(raw, where)
    return raw


@dataclass(frozen=True)
class Scales:
    """Rank and factor of each module's matrices."""

    where: Path
    rank: int
    alpha: float
    by_root: bool
    """the factor is alpha / sqrt(rank), rank-stabilised LoRA (arXiv:2312.03732, eq. 8), not alpha / rank"""
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    """by patterns of modules, as peft reads them"""

    @classmethod
    def of(cls, raw: Mapping, where: Path) -> "Scales":
        """Raises ModelError for a field that is no number, or no pattern."""
        rank, alpha = raw.get("r", 8), raw.get("lora_alpha", 8)
        ranks, alphas = (raw.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
        for name, patterns, usual in (("r", ranks, rank), ("lora_alpha", alphas, alpha)):
            if not isinstance(patterns, dict):
                raise ModelError(f"{where} has patterns {patterns!r} of {name}; expected an object of numbers")
            for value in (usual, *patterns.values()):
                whole = type(value) is int or (name == "lora_alpha" and type(value) is float and math.isfinite(value))
                if not whole or (name == "r" and value < 1):
                    raise ModelError(f"{where} has {value!r} for {name}; expected a positive number")
            for pattern in patterns:
                _compiled(pattern, where)
        return cls(where, rank, alpha, bool(raw.get("use_rslora")), ranks, alphas)

    def of_module(self, names: Iterable[str]) -> tuple[int, float]:
        """Rank and factor of a module, by the names that it has."""
        names = tuple(names)
        rank = self._matching(self.ranks, names, self.rank)
        alpha = self._matching(self.alphas, names, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.by_root else rank)

    def _matching(self, patterns: Mapping, names: tuple[str, ...], usual: float) -> float:
        return next(
            (value for pattern, value in patterns.items() if any(map(_compiled(pattern, self.where).match, names))),
            usual,
        )


def _compiled(pattern: str, where: Path) -> re.Pattern:
    """A pattern as peft's get_pattern_key reads it: of a module's name, or of the end of it behind a full stop."""
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise ModelError(f"{where} has the pattern {pattern!r}, which is no regular expression: {error}") from error
