"""The resolved configuration of a run: a frozen dataclass, checked on construction. Imports no torch.

Its fields are those of flags.py.
"""

import functools
import json
import math
import re
from dataclasses import dataclass

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.flag_files import read_text
from data_engine.flags import Flags, require
from data_engine.schemas import INPUT_COLUMNS, OPTIONAL_COLUMNS, REFERENCE_COLUMNS
from data_engine.stages import (
    COMPARED,
    JUDGES,
    SOURCES,
    TEMPLATE_KWARGS,
    TRAINED,
    RunStages,
    SourceFlags,
    kwargs_flag,
)
from data_engine.tables import load
from data_engine.vllm_settings import LEAST_TEMPERATURE, read_args

_INT_MAX = 2**63 - 1
# Arguments of transformers' apply_chat_template that the engine gives itself.
_OWN_TEMPLATE_ARGUMENTS = (
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "messages", "padding",
    "return_dict", "return_tensors", "tokenize", "truncation",
)  # fmt: skip


# Why stage 0 by vLLM and the stages of a split model take two starts.
ZERO3_AND_VLLM = (
    "{told}: models that are split take all ranks, and each engine of vLLM a group of GPUs. Make two starts: one with "
    "--stop_after_stage 0, then one with --continue_from_stage 1"
)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Flags):
    """What `data-engine run` was told, checked, and what follows from it."""

    def __post_init__(self) -> None:
        self.check_types()
        for name in ("rank", "distance", "max_pairs", "max_new_tokens", "num_shards", "unit_size", "limit", "threads"):
            value = getattr(self, name)
            require(value is None or 1 <= value <= _INT_MAX, f"{name} must be at least 1, got {value}")
        require(self.grace_s >= 0, f"grace_s must be at least 0, got {self.grace_s}")
        require(self.sample_k >= 2, f"sample_k must be at least 2 to form a pair, got {self.sample_k}")
        # Of answers from a file, the file tells how many there are.
        most = _INT_MAX if self.answers is not None else self.sample_k
        require(self.rank <= most, f"rank must be at most sample_k, {self.sample_k}, got {self.rank}")
        for name in ("beta", "repetition_penalty", "max_megapixels"):
            require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        require(self.temperature >= 0, f"temperature must be at least 0 (0 is greedy), got {self.temperature}")
        require(0 <= self.top_k <= _INT_MAX, f"top_k must be at least 0 (0 is off), got {self.top_k}")
        require(
            0 < self.memory_fraction <= 1,
            f"memory_fraction must be above 0 and at most 1, got {self.memory_fraction}",
        )
        require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1 (1 is off), got {self.top_p}")
        require(0 <= self.seed <= _INT_MAX, f"seed must be between 0 and 2**63 - 1, got {self.seed}")
        require(
            0 <= self.shard_index < self.num_shards,
            f"shard_index must be between 0 and num_shards - 1, {self.num_shards - 1}, got {self.shard_index}",
        )
        for name in ("continue_from_stage", "stop_after_stage"):
            value = getattr(self, name)
            require(value in (0, 1, 2), f"{name} must be 0 (sample), 1 (score) or 2 (pair), got {value}")
        require(
            self.continue_from_stage <= self.stop_after_stage,
            f"continue_from_stage {self.continue_from_stage} lies after stop_after_stage {self.stop_after_stage}",
        )
        require(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            f"device must be auto, cpu, cuda or cuda:N, got {json.dumps(self.device)}",
        )
        _ = self.column_names, self.chat_template_text, self.template_kwargs
        for role in JUDGES:
            self.judge_kwargs(role)
        self._check_sampler()
        for name in self.stages.given:
            require(getattr(self, name) is not None, f"{name} is missing: {self.stages.why_given(name)}")
        self._check_pairing()

    def _check_pairing(self) -> None:
        """Raise UserError for what cannot be meant of pairs; names of strategies and rewards are not known here."""
        _ = self.alpha
        near, least, most = self.near_duplicates, self.min_margin, self.max_margin
        require(near is None or 0 < near <= 1, f"near_duplicates must be above 0 and at most 1, got {near}")
        require(
            least is None or most is None or least <= most,
            f"min_margin {least} is above max_margin {most}: no pair could be kept",
        )
        by_right = self.strategy == "right_wrong"
        require(
            not by_right or self.right is not None,
            "strategy right_wrong needs --right, the reward from which on an answer is right",
        )
        require(by_right or self.right is None, "right is for --strategy right_wrong; leave it out, or set strategy")
        require(
            not by_right or self.length_alpha is None,
            "length_alpha changes rankings, and strategy right_wrong goes by none; give one of the two",
        )

    @functools.cached_property
    def stages(self) -> RunStages:
        """The stages of the run. Raises UserError for sources of reward that are not known."""
        return RunStages.of(vars(self))

    @functools.cached_property
    def source_flags(self) -> dict[str, SourceFlags]:
        """What the flags of each source of reward name, by the source; read once.

        Raises UserError for what cannot be used. Not looked at for a run that is finished: its files may be gone.
        """
        named = {source: SOURCES[source].flags for source in self.stages.sources}
        return {source: load(flags)(self) for source, flags in named.items() if flags is not None}

    @property
    def further_columns(self) -> tuple[str, ...] | None:
        """The dataset's columns that sources of reward read besides those of every question; None: all."""
        columns = [flags.columns for flags in self.source_flags.values()]
        return None if None in columns else tuple(dict.fromkeys(name for names in columns for name in names))

    @property
    def roles(self) -> tuple[str, ...]:
        """The models of the run. The one to train is among them where it is named, even if no stage runs it: markers
        and control tokens of its prompts are looked for in the answers.
        """
        trained = (TRAINED,) if self.instruct_model_path is not None else ()
        return tuple(dict.fromkeys([*trained, *self.stages.roles]))

    def _check_sampler(self) -> None:
        """Raise UserError for what does not go together with vLLM, or with its absence."""
        if self.sampler == "native":
            require(self.vllm_args is None, "vllm_args is for --sampler vllm; leave it out, or set sampler to vllm")
            return
        _ = self.vllm_options
        require(self.answers is None, "sampler vllm draws answers, and --answers brings them; give one of the two")
        require(
            self.repetition_penalty == 1,
            f"repetition_penalty must be 1 with sampler vllm, got {self.repetition_penalty}: vLLM's counts the tokens "
            "of the prompt too, which makes another distribution",
        )
        require(
            self.temperature >= LEAST_TEMPERATURE,
            f"temperature must be at least {LEAST_TEMPERATURE} with sampler vllm, got {self.temperature}: vLLM draws "
            f"one answer at most greedily, and raises a lower temperature to {LEAST_TEMPERATURE}",
        )
        both = self.continue_from_stage == 0 and self.stop_after_stage > 0
        require(not (both and self.zero3 == "on"), ZERO3_AND_VLLM.format(told="zero3 is on"))

    @functools.cached_property
    def column_names(self) -> dict[str, str]:
        """What --columns says: our name of a column -> the dataset's, which is empty for one that is not read.

        Raises UserError for what cannot be meant; whether the dataset has these columns is not known here.
        """
        found: dict[str, str] = {}
        for item in self.columns.split(",") if self.columns is not None else ():
            ours, equals, theirs = (part.strip() for part in item.partition("="))
            require(bool(equals), f"columns must be like question=prompt,image=picture, got {json.dumps(item)}")
            known = (*INPUT_COLUMNS, *OPTIONAL_COLUMNS, *REFERENCE_COLUMNS)
            require(ours in known, f"columns names {json.dumps(ours)}, which is not one of {', '.join(known)}")
            require(ours not in found, f"columns names {ours} twice")
            require(not theirs or theirs not in found.values(), f"columns gives {json.dumps(theirs)} two names")
            found[ours] = theirs
        return found

    @functools.cached_property
    def chat_template_text(self) -> str | None:
        """What is in the file of --chat_template; read once. Raises UserError where it cannot be a template."""
        if self.chat_template is None:
            return None
        where = f'chat_template "{self.chat_template}"'
        return read_text(where, self.chat_template, "a Jinja template", "the model's own template")

    @functools.cached_property
    def alpha(self) -> float | str | None:
        """What --length_alpha says: a number, "auto" or nothing. Raises UserError for anything else."""
        if self.length_alpha in (None, "auto"):
            return self.length_alpha
        try:
            found = float(self.length_alpha)
        except ValueError:
            found = math.nan
        require(math.isfinite(found), f"length_alpha must be a number or auto, got {json.dumps(self.length_alpha)}")
        return found

    @property
    def chat(self) -> ChatSettings:
        """What the flags say about chat templates."""
        return ChatSettings(self.chat_template_text, self.template_kwargs)

    def chat_of(self, role: str) -> ChatSettings:
        """What they say about that of a role: a judge has a template of its own."""
        if role in COMPARED:
            return self.chat
        if role in JUDGES:
            return ChatSettings(None, self.judge_kwargs(role), f"--{kwargs_flag(role)}")
        return NO_CHAT_SETTINGS

    def judge_kwargs(self, role: str) -> dict[str, object]:
        """The object of --ROLE_chat_template_kwargs. Raises UserError as template_kwargs does."""
        return self._object_of(kwargs_flag(role))

    @functools.cached_property
    def vllm_options(self) -> dict[str, object]:
        """The object of --vllm_args. Raises UserError where it is none, or has what the run gives itself."""
        return read_args(self.vllm_args)

    @property
    def draws_by_vllm(self) -> bool:
        """Whether this start may draw answers by vLLM."""
        return self.sampler == "vllm" and self.continue_from_stage == 0

    @functools.cached_property
    def template_kwargs(self) -> dict[str, object]:
        """The object of --chat_template_kwargs. Raises UserError where it is none, or has what the engine sets."""
        return self._object_of(TEMPLATE_KWARGS)

    def _object_of(self, flag: str) -> dict[str, object]:
        given = getattr(self, flag)
        if given is None:
            return {}
        try:
            found = json.loads(given)
        except (ValueError, RecursionError):
            found = None
        require(
            isinstance(found, dict),
            f'{flag} must be a JSON object like {{"enable_thinking": false}}, got {json.dumps(given)[:200]}',
        )
        own = ", ".join(name for name in _OWN_TEMPLATE_ARGUMENTS if name in found)
        require(not own, f"{flag} has {own}, which the engine sets itself; take it out")
        return found
