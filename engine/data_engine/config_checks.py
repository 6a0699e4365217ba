"""What must hold of the fields of a RunConfig, check by check, so that all that is wrong can be told at once. No torch.

A check names the fields that it reads. Where one of them is known to be wrong, the check says nothing: it would only
tell what follows from that.
"""

import json
import math
import numbers
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from data_engine.flag_files import RULES_BY_NAME, files_by_name
from data_engine.flags import require
from data_engine.stages import JUDGES, TRAINED, kwargs_flag
from data_engine.vllm_settings import LEAST_TEMPERATURE

# A config.RunConfig, which goes by this module.
Config = Any
INT_MAX = 2**63 - 1
# Strategies that pair without --rank.
WITHOUT_RANK = ("best_worst", "right_wrong", "mu_2sigma")
# Why stage 0 by vLLM and the stages of a split model take two starts.
ZERO3_AND_VLLM = (
    "{told}: models that are split take all ranks, and each engine of vLLM a group of GPUs. Make two starts: one with "
    "--stop_after_stage 0, then one with --continue_from_stage 1"
)


class Check(NamedTuple):
    """A function that raises UserError where its fields do not hold, or do not go together."""

    fields: tuple[str, ...]
    """the first one is to blame where it fails: later checks that read it are left out"""
    hold: Callable[[Config], object]


def _at_least_one(name: str) -> Check:
    def hold(config: Config) -> None:
        value = getattr(config, name)
        require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        require(value is None or value <= INT_MAX, f"{name} must be at most 2**63 - 1, got {value}")

    return Check((name,), hold)


def _above_zero(name: str) -> Check:
    def hold(config: Config) -> None:
        require(getattr(config, name) > 0, f"{name} must be above 0, got {getattr(config, name)}")

    return Check((name,), hold)


def _stage(name: str) -> Check:
    def hold(config: Config) -> None:
        value = getattr(config, name)
        require(value in (0, 1, 2), f"{name} must be 0 (sample), 1 (score) or 2 (pair), got {value}")

    return Check((name,), hold)


def _grace_s(config: Config) -> None:
    require(config.grace_s >= 0, f"grace_s must be at least 0, got {config.grace_s}")


def _sample_k(config: Config) -> None:
    require(config.sample_k >= 2, f"sample_k must be at least 2 to form a pair, got {config.sample_k}")


def _rank(config: Config) -> None:
    # Of answers from a file, the file tells how many there are.
    most = INT_MAX if config.answers is not None or config.strategy in WITHOUT_RANK else config.sample_k
    require(config.rank <= most, f"rank must be at most sample_k, {config.sample_k}, got {config.rank}")


def has_effect(name: str, strategy: str | None, sources: Sequence[str]) -> bool:
    """Whether pairs depend on a flag of pairing, by a strategy and of these sources of reward."""
    return strategy not in WITHOUT_RANK if name == "rank" else name != "beta" or "implicit" in sources


def without_pairs(config: Config) -> list[str]:
    """Settings of which no pair can come, whatever the answers are. Of answers from a file, the file tells it."""
    found = []
    if config.answers is not None:
        return found
    setting = "temperature 0" if config.temperature == 0 else "top_k 1" if config.top_k == 1 else None
    if setting is not None:
        found.append(f"{setting} gives the same answer k times: no pair can come of it")
    if config.rank == config.sample_k and config.strategy not in WITHOUT_RANK:
        found.append(
            f"rank is sample_k, {config.rank}: each answer is both among the best and among the worst then, and no "
            "pair can come of it; lower --rank or raise --sample_k"
        )
    return found


def _temperature(config: Config) -> None:
    require(config.temperature >= 0, f"temperature must be at least 0 (0 is greedy), got {config.temperature}")


def _top_k(config: Config) -> None:
    require(config.top_k >= 0, f"top_k must be at least 0 (0 is off), got {config.top_k}")
    require(config.top_k <= INT_MAX, f"top_k must be at most 2**63 - 1, got {config.top_k}")


def _memory_fraction(config: Config) -> None:
    require(
        0 < config.memory_fraction <= 1,
        f"memory_fraction must be above 0 and at most 1, got {config.memory_fraction}",
    )


def _top_p(config: Config) -> None:
    require(0 < config.top_p <= 1, f"top_p must be above 0 and at most 1 (1 is off), got {config.top_p}")


def _seed(config: Config) -> None:
    require(0 <= config.seed <= INT_MAX, f"seed must be between 0 and 2**63 - 1, got {config.seed}")


def _shard_index(config: Config) -> None:
    require(
        0 <= config.shard_index < config.num_shards,
        f"shard_index must be between 0 and num_shards - 1, {config.num_shards - 1}, got {config.shard_index}",
    )


def _order_of_stages(config: Config) -> None:
    require(
        config.continue_from_stage <= config.stop_after_stage,
        f"continue_from_stage {config.continue_from_stage} lies after stop_after_stage {config.stop_after_stage}",
    )


def _device(config: Config) -> None:
    require(
        re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device) is not None,
        f"device must be auto, cpu, cuda or cuda:N, got {json.dumps(config.device)}",
    )


def _no_vllm_args(config: Config) -> None:
    if config.sampler == "native":
        require(config.vllm_args is None, "vllm_args is for --sampler vllm; leave it out, or set sampler to vllm")


def _vllm_args(config: Config) -> None:
    if config.sampler == "vllm":
        _ = config.vllm_options


def _vllm_or_answers(config: Config) -> None:
    require(
        config.sampler != "vllm" or config.answers is None,
        "sampler vllm draws answers, and --answers brings them; give one of the two",
    )


def _vllm_penalty(config: Config) -> None:
    require(
        config.sampler != "vllm" or config.repetition_penalty == 1,
        f"repetition_penalty must be 1 with sampler vllm, got {config.repetition_penalty}: vLLM's counts the tokens "
        "of the prompt too, which makes another distribution",
    )


def _vllm_temperature(config: Config) -> None:
    require(
        config.sampler != "vllm" or config.temperature >= LEAST_TEMPERATURE,
        f"temperature must be at least {LEAST_TEMPERATURE} with sampler vllm, got {config.temperature}: vLLM draws "
        f"one answer at most greedily, and raises a lower temperature to {LEAST_TEMPERATURE}",
    )


def _vllm_and_zero3(config: Config) -> None:
    both = config.continue_from_stage == 0 and config.stop_after_stage > 0
    require(not (config.sampler == "vllm" and both and config.zero3 == "on"), ZERO3_AND_VLLM.format(told="zero3 is on"))


def _given(name: str) -> Check:
    """What the sources of reward and the stages need."""

    def hold(config: Config) -> None:
        needed = name in config.stages.given
        require(
            not needed or getattr(config, name) is not None,
            f"{name} is missing: {config.stages.why_given(name) if needed else ''}",
        )

    return Check((name, "rewards"), hold)


def _template_kwargs(role: str) -> Check:
    return Check((kwargs_flag(role),), lambda config: config.template_kwargs(role))


def _near_duplicates(config: Config) -> None:
    near = config.near_duplicates
    require(near is None or 0 < near <= 1, f"near_duplicates must be above 0 and at most 1, got {near}")


def _length_balance(config: Config) -> None:
    require(config.length_balance >= 0, f"length_balance must be at least 0, got {config.length_balance}")


def _margins(config: Config) -> None:
    least, most = config.min_margin, config.max_margin
    require(
        least is None or most is None or least <= most,
        f"min_margin {least} is above max_margin {most}: no pair could be kept",
    )


def _right_is_given(config: Config) -> None:
    require(
        config.strategy != "right_wrong" or config.right is not None,
        "strategy right_wrong needs --right, the reward from which on an answer is right",
    )


def _right_is_left_out(config: Config) -> None:
    require(
        config.strategy == "right_wrong" or config.right is None,
        "right is for --strategy right_wrong; leave it out, or set strategy",
    )


def _right_wrong_and_alpha(config: Config) -> None:
    require(
        config.strategy != "right_wrong" or config.length_alpha is None,
        "length_alpha changes rankings, and strategy right_wrong goes by none; give one of the two",
    )


# In the order in which a person is told. Names of strategies and rewards are not known here.
CHECKS = (
    *map(_at_least_one, (
        "rank", "distance", "max_pairs", "max_new_tokens", "num_shards", "unit_size", "limit", "threads",
    )),
    Check(("grace_s",), _grace_s),
    Check(("sample_k",), _sample_k),
    Check(("rank", "sample_k", "answers", "strategy"), _rank),
    *map(_above_zero, ("beta", "repetition_penalty", "max_megapixels")),
    Check(("temperature",), _temperature),
    Check(("top_k",), _top_k),
    Check(("memory_fraction",), _memory_fraction),
    Check(("top_p",), _top_p),
    Check(("seed",), _seed),
    Check(("shard_index", "num_shards"), _shard_index),
    *map(_stage, ("continue_from_stage", "stop_after_stage")),
    Check(("continue_from_stage", "stop_after_stage"), _order_of_stages),
    Check(("device",), _device),
    Check(("columns",), lambda config: config.column_names),
    Check(("chat_template",), lambda config: config.chat_template_text),
    *map(_template_kwargs, (TRAINED, *JUDGES)),
    # The names of aspects, of which columns are made; the files are read where they are needed.
    Check(("yesno_template",), lambda config: files_by_name("yesno_template", config.yesno_template)),
    Check(("rule",), lambda config: files_by_name("rule", config.rule, RULES_BY_NAME)),
    Check(("vllm_args", "sampler"), _no_vllm_args),
    Check(("vllm_args", "sampler"), _vllm_args),
    Check(("answers", "sampler"), _vllm_or_answers),
    Check(("repetition_penalty", "sampler"), _vllm_penalty),
    Check(("temperature", "sampler"), _vllm_temperature),
    Check(("zero3", "sampler", "continue_from_stage", "stop_after_stage"), _vllm_and_zero3),
    Check(("rewards",), lambda config: config.stages),
    *map(_given, (
        "instruct_model_path", "reward_model_path", "yesno_model_path", "scalar_model_path", "critic_model_path",
        "rule",
    )),
    Check(("length_alpha",), lambda config: config.alpha),
    Check(("near_duplicates",), _near_duplicates),
    Check(("length_balance",), _length_balance),
    Check(("min_margin", "max_margin"), _margins),
    Check(("right", "strategy"), _right_is_given),
    Check(("right", "strategy"), _right_is_left_out),
    Check(("length_alpha", "strategy"), _right_wrong_and_alpha),
)  # fmt: skip


def check_values(**values: object) -> None:
    """Raise UserError for one of these numbers that does not hold alone: for calls without a whole configuration."""
    require_finite(**values)
    given = SimpleNamespace(**values)
    for check in CHECKS:
        if values.keys() >= set(check.fields):
            check.hold(given)


def require_finite(**values: object) -> None:
    """Raise UserError for a value that is no finite number, of whatever library."""
    for name, value in values.items():
        try:
            is_finite = math.isfinite(value)
        except TypeError:
            is_finite = False
        require(is_finite, f"{name} must be a finite number, got {value!r}")


def require_whole(**values: object) -> None:
    """Raise UserError for a value that is no whole number."""
    for name, value in values.items():
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        require(is_whole, f"{name} must be a whole number, got {value!r}")
