"""The resolved configuration of a run: a frozen dataclass, checked on construction. Imports no torch.

A field is a flag of `data-engine run` and a key of its YAML, by the same name; its docstring is the flag's help.
"""

import functools
import json
import math
import re
import types
import typing
from dataclasses import dataclass, fields
from typing import Literal

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.errors import UserError
from data_engine.flag_files import read_text
from data_engine.schemas import INPUT_COLUMNS, OPTIONAL_COLUMNS, REFERENCE_COLUMNS
from data_engine.stages import COMPARED, DEFAULT, SOURCES, TRAINED, RunStages, SourceFlags
from data_engine.tables import load
from data_engine.vllm_settings import LEAST_TEMPERATURE, read_args

_INT_MAX = 2**63 - 1
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
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


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that `data-engine run` can be told."""

    instruct_model_path: str | None = None
    """the model to train: local folder or hub id; needed wherever a stage runs it"""
    reward_model_path: str | None = None
    """the same model after DPO: local folder or hub id; needed for the reward implicit"""
    dataset_path: str
    """questions: parquet file or folder, .jsonl, .json or .csv (also .gz), `datasets` folder, or hub id"""
    work_dir: str
    """everything is written under it"""
    instruct_model_name: str | None = None
    """family name; default: from config.json"""
    reward_model_name: str | None = None
    """family name; default: from config.json"""
    instruct_model_revision: str | None = None
    """hub commit of the instruct model"""
    reward_model_revision: str | None = None
    """hub commit of the reward model"""
    instruct_base_model_path: str | None = None
    """where the instruct model is an adapter of peft: its base, if it is not where adapter_config.json says"""
    reward_base_model_path: str | None = None
    """where the reward model is an adapter of peft: its base, if it is not where adapter_config.json says"""
    dataset_split: str | None = None
    """split of a folder or hub dataset; default: the only one"""
    dataset_revision: str | None = None
    """hub commit of the dataset"""
    image_root: str | None = None
    """the only folder under which image paths of the dataset may be opened; without it only bytes are read"""
    columns: str | None = None
    """the dataset's names of columns, as in question=prompt,image=picture; NAME= leaves a column of that name unread"""
    answers: str | None = None
    """file of answers, parquet or .jsonl (also .gz), with idx and answer or token_ids, several rows a question: they
    take the place of sampling"""
    system: str | None = None
    """the system text of rows that have none of their own"""
    chat_template: str | None = None
    """file with a Jinja chat template, in the place of the models' own"""
    chat_template_kwargs: str | None = None
    """more arguments of the chat template, as a JSON object: {"enable_thinking": false}"""
    limit: int | None = None
    """only the first N questions"""
    continue_from_stage: int = 0
    """0 sample, 1 score, 2 pair; earlier stages must be complete"""
    stop_after_stage: int = 2
    """0 sample, 1 score, 2 pair"""
    num_shards: int = 1
    """this job takes units u with u % num_shards == shard_index"""
    shard_index: int = 0
    """see num_shards"""
    unit_size: int | None = None
    """questions a unit, or auto: number of questions / 1024, rounded up, between 8 and 256"""
    rewards: str = DEFAULT
    """sources of reward: implicit,contrast"""
    yesno_model_path: str | None = None
    """model that is asked whether an answer is right: local folder or hub id; needed for the reward yesno"""
    yesno_base_model_path: str | None = None
    """where that model is an adapter: its base, if it is not where adapter_config.json says"""
    yesno_model_name: str | None = None
    """family name; default: from config.json"""
    yesno_model_revision: str | None = None
    """hub commit of that model"""
    yesno_template: str | None = None
    """file with what it is asked about an answer, with {question} and {answer} in it; default: whether the image
    supports every statement"""
    scalar_model_path: str | None = None
    """reward model with a head of one number: local folder or hub id; needed for the reward scalar"""
    scalar_base_model_path: str | None = None
    """where that model is an adapter: its base, if it is not where adapter_config.json says"""
    scalar_model_name: str | None = None
    """family name; default: from config.json"""
    scalar_model_revision: str | None = None
    """hub commit of that model"""
    critic_model_path: str | None = None
    """model that writes a verdict on each answer: local folder or hub id; needed for the reward critic"""
    critic_base_model_path: str | None = None
    """where that model is an adapter: its base, if it is not where adapter_config.json says"""
    critic_model_name: str | None = None
    """family name; default: from config.json"""
    critic_model_revision: str | None = None
    """hub commit of that model"""
    critic_template: str | None = None
    """file with what it is asked, and where its number stands in what it writes"""
    rule: str | None = None
    """rule of the reward rule: the name of a built-in one, or FILE.py:function"""
    sample_k: int = 10
    """answers a question"""
    rank: int = 3
    """depth of top and bottom of the ranking that is considered for pairs"""
    distance: int = 25
    """a pair's word counts differ by less than this"""
    beta: float = 0.1
    """reward scale"""
    rank_by: str | None = None
    """rewards that rank the answers, by which each answer of a pair is good or bad: implicit.sum,implicit.avg; default:
    those two, or the mean or only number of the first source"""
    strategy: str = "cross"
    """how answers are paired: cross, best_worst, aligned, right_wrong or mu_2sigma; docs/pairs.md says more"""
    right: float | None = None
    """with strategy right_wrong: from this reward on an answer is right"""
    min_margin: float | None = None
    """pairs with a smaller difference of rewards, by the first of rank_by, are dropped"""
    max_margin: float | None = None
    """pairs with a larger difference of rewards are dropped"""
    length_alpha: str | None = None
    """answers rank by their reward minus this times their words; auto: so that neither side of the pairs is longer"""
    near_duplicates: float | None = None
    """of answers whose 10-grams have at least this Jaccard similarity, above 0 and at most 1, the first one ranks"""
    max_pairs: int = 3
    """pairs a question keeps at most, drawn by the seed"""
    export: str | None = None
    """formats for trainers that are written as work_dir/exports/FORMAT besides dataset/: trl,llama-factory"""
    temperature: float = 0.7
    """0 is greedy"""
    top_k: int = 50
    """0 is off"""
    top_p: float = 1.0
    """1.0 is off"""
    repetition_penalty: float = 1.0
    """1.0 is off; it sees generated tokens only"""
    max_new_tokens: int = 512
    """longest answer, in tokens"""
    seed: int = 0
    """same seed, same dataset"""
    sampler: Literal["native", "vllm"] = "native"
    """what draws the answers: this engine, or vLLM, which promises each answer once, but not the same bytes again"""
    vllm_args: str | None = None
    """arguments of vLLM's engine, as a JSON object: {"tensor_parallel_size": 8}"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on CPU"""
    device: str = "auto"
    """auto: cuda if there, else cpu"""
    threads: int | None = None
    """CPU threads a rank, or auto: OMP_NUM_THREADS, or cores / ranks"""
    memory_fraction: float = 0.9
    """share of a GPU's memory that a rank may use; what follows from it is fixed at the first start"""
    zero3: Literal["auto", "on", "off"] = "auto"
    """split the models over the ranks (DeepSpeed ZeRO-3); auto: where a GPU cannot hold one whole"""
    zero3_config: str | None = None
    """DeepSpeed's settings as JSON; default: those of launch/deepspeed/zero3.json"""
    lookahead: bool = False
    """the next unit starts as soon as rows are free, instead of after the longest answer: faster, but the last
    bits of answers then depend on which units followed each other, so that another number of ranks may give another
    dataset"""
    require_fast: bool = False
    """an error where a model does not fit the fast path, instead of a warning"""
    grace_s: float = 20
    """seconds that the unit in hand may still take after a signal; then it is dropped"""
    on_bad_row: Literal["skip", "error"] = "skip"
    """skip: quarantine with a reason and go on; error: stop at the first, exit 2"""
    max_megapixels: float = 64
    """limit on the source, padded and resized image"""
    exif: Literal["apply", "ignore"] = "apply"
    """apply: pictures are turned upright by their EXIF orientation; ignore: pixels are used as they are stored"""
    same_pixels: bool = False
    """both stages see the scoring stage's crop"""
    debug: bool = False
    """also write the image-free intermediate tables as JSON under debug/"""

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("rank", "distance", "max_pairs", "max_new_tokens", "num_shards", "unit_size", "limit", "threads"):
            value = getattr(self, name)
            _require(value is None or 1 <= value <= _INT_MAX, f"{name} must be at least 1, got {value}")
        _require(self.grace_s >= 0, f"grace_s must be at least 0, got {self.grace_s}")
        _require(self.sample_k >= 2, f"sample_k must be at least 2 to form a pair, got {self.sample_k}")
        # Of answers from a file, the file tells how many there are.
        most = _INT_MAX if self.answers is not None else self.sample_k
        _require(self.rank <= most, f"rank must be at most sample_k, {self.sample_k}, got {self.rank}")
        for name in ("beta", "repetition_penalty", "max_megapixels"):
            _require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        _require(self.temperature >= 0, f"temperature must be at least 0 (0 is greedy), got {self.temperature}")
        _require(0 <= self.top_k <= _INT_MAX, f"top_k must be at least 0 (0 is off), got {self.top_k}")
        _require(
            0 < self.memory_fraction <= 1,
            f"memory_fraction must be above 0 and at most 1, got {self.memory_fraction}",
        )
        _require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1 (1 is off), got {self.top_p}")
        _require(0 <= self.seed <= _INT_MAX, f"seed must be between 0 and 2**63 - 1, got {self.seed}")
        _require(
            0 <= self.shard_index < self.num_shards,
            f"shard_index must be between 0 and num_shards - 1, {self.num_shards - 1}, got {self.shard_index}",
        )
        for name in ("continue_from_stage", "stop_after_stage"):
            value = getattr(self, name)
            _require(value in (0, 1, 2), f"{name} must be 0 (sample), 1 (score) or 2 (pair), got {value}")
        _require(
            self.continue_from_stage <= self.stop_after_stage,
            f"continue_from_stage {self.continue_from_stage} lies after stop_after_stage {self.stop_after_stage}",
        )
        _require(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            f"device must be auto, cpu, cuda or cuda:N, got {json.dumps(self.device)}",
        )
        _ = self.column_names, self.chat_template_text, self.template_kwargs
        self._check_sampler()
        for name in self.stages.given:
            _require(getattr(self, name) is not None, f"{name} is missing: {self.stages.why_given(name)}")
        self._check_pairing()

    def _check_pairing(self) -> None:
        """Raise UserError for what cannot be meant of pairs; names of strategies and rewards are not known here."""
        _ = self.alpha
        near, least, most = self.near_duplicates, self.min_margin, self.max_margin
        _require(near is None or 0 < near <= 1, f"near_duplicates must be above 0 and at most 1, got {near}")
        _require(
            least is None or most is None or least <= most,
            f"min_margin {least} is above max_margin {most}: no pair could be kept",
        )
        by_right = self.strategy == "right_wrong"
        _require(
            not by_right or self.right is not None,
            "strategy right_wrong needs --right, the reward from which on an answer is right",
        )
        _require(by_right or self.right is None, "right is for --strategy right_wrong; leave it out, or set strategy")
        _require(
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
            _require(self.vllm_args is None, "vllm_args is for --sampler vllm; leave it out, or set sampler to vllm")
            return
        _ = self.vllm_options
        _require(self.answers is None, "sampler vllm draws answers, and --answers brings them; give one of the two")
        _require(
            self.repetition_penalty == 1,
            f"repetition_penalty must be 1 with sampler vllm, got {self.repetition_penalty}: vLLM's counts the tokens "
            "of the prompt too, which makes another distribution",
        )
        _require(
            self.temperature >= LEAST_TEMPERATURE,
            f"temperature must be at least {LEAST_TEMPERATURE} with sampler vllm, got {self.temperature}: vLLM draws "
            f"one answer at most greedily, and raises a lower temperature to {LEAST_TEMPERATURE}",
        )
        both = self.continue_from_stage == 0 and self.stop_after_stage > 0
        _require(not (both and self.zero3 == "on"), ZERO3_AND_VLLM.format(told="zero3 is on"))

    @functools.cached_property
    def column_names(self) -> dict[str, str]:
        """What --columns says: our name of a column -> the dataset's, which is empty for one that is not read.

        Raises UserError for what cannot be meant; whether the dataset has these columns is not known here.
        """
        found: dict[str, str] = {}
        for item in self.columns.split(",") if self.columns is not None else ():
            ours, equals, theirs = (part.strip() for part in item.partition("="))
            _require(bool(equals), f"columns must be like question=prompt,image=picture, got {json.dumps(item)}")
            known = (*INPUT_COLUMNS, *OPTIONAL_COLUMNS, *REFERENCE_COLUMNS)
            _require(ours in known, f"columns names {json.dumps(ours)}, which is not one of {', '.join(known)}")
            _require(ours not in found, f"columns names {ours} twice")
            _require(not theirs or theirs not in found.values(), f"columns gives {json.dumps(theirs)} two names")
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
        _require(math.isfinite(found), f"length_alpha must be a number or auto, got {json.dumps(self.length_alpha)}")
        return found

    @property
    def chat(self) -> ChatSettings:
        """What the flags say about chat templates."""
        return ChatSettings(self.chat_template_text, self.template_kwargs)

    def chat_of(self, role: str) -> ChatSettings:
        """What they say about that of a role: a judge has a template of its own."""
        return self.chat if role in COMPARED else NO_CHAT_SETTINGS

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
        if self.chat_template_kwargs is None:
            return {}
        try:
            found = json.loads(self.chat_template_kwargs)
        except (ValueError, RecursionError):
            found = None
        _require(
            isinstance(found, dict),
            'chat_template_kwargs must be a JSON object like {"enable_thinking": false}, '
            f"got {json.dumps(self.chat_template_kwargs)[:200]}",
        )
        own = ", ".join(name for name in _OWN_TEMPLATE_ARGUMENTS if name in found)
        _require(not own, f"chat_template_kwargs has {own}, which the engine sets itself; take it out")
        return found

    def _check_types(self) -> None:
        """Hold every field to its annotation; a whole number in a float field becomes one, so that 1 equals 1.0."""
        for name, annotation in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
            if value is None and type(None) in kinds:
                continue
            kind = kinds[0]
            if kind is float and type(value) is int and abs(value) <= 2**53:
                value = float(value)
                object.__setattr__(self, name, value)
            shown = json.dumps(value, default=str)
            if typing.get_origin(kind) is Literal:
                choices = typing.get_args(kind)
                _require(value in choices, f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, got {shown}")
            else:
                quote = "; in YAML, put it in quotes" if kind is str else ""
                _require(type(value) is kind, f"{name} must be {_EXPECTED[kind]}, got {shown}{quote}")
                _require(kind is not float or math.isfinite(value), f"{name} must be a finite number, got {shown}")
                _require(kind is not str or value.strip(), f"{name} is empty; is a shell variable unset?")
                # Python's stand-ins for bytes that are no UTF-8; Arrow and tokenizers take no such name of a file.
                encodable = kind is not str or not re.search("[\ud800-\udfff]", value)
                _require(encodable, f"{name} must be text in UTF-8, got {shown}; rename the file or folder")


FIELD_NAMES = tuple(field.name for field in fields(RunConfig))
