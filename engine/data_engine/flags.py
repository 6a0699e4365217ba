"""The flags of `data-engine run`, their defaults and types. Imports no torch.

A field is a flag and a key of the YAML, by the same name; its docstring is the flag's help. What flags mean together is
config.py's.
"""

import json
import math
import re
import types
import typing
from dataclasses import MISSING, dataclass, fields
from typing import Literal

from data_engine.errors import UserError
from data_engine.stages import DEFAULT

_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def require(holds: bool, message: str) -> None:
    """Raise UserError with the message unless it holds."""
    if not holds:
        raise UserError(message)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Everything that `data-engine run` can be told."""

    instruct_model_path: str | None = None
    """the model to train: local folder or hub id; needed wherever a stage runs it"""
    reward_model_path: str | None = None
    """the same model after DPO: local folder or hub id; needed for the reward implicit"""
    reference_model_path: str | None = None
    """the reward model before DPO, for the reward implicit: local folder or hub id; default: the instruct model"""
    dataset_path: str
    """questions: parquet, .jsonl, .json, .csv, .tsv (also .gz), a folder of such files, `datasets` folder, or hub id;
    with --question also a folder of pictures"""
    work_dir: str
    """everything is written under it"""
    instruct_model_name: str | None = None
    """family name; default: from config.json"""
    reward_model_name: str | None = None
    """family name; default: from config.json"""
    reference_model_name: str | None = None
    """family name; default: from config.json"""
    instruct_model_revision: str | None = None
    """hub commit of the instruct model"""
    reward_model_revision: str | None = None
    """hub commit of the reward model"""
    reference_model_revision: str | None = None
    """hub commit of the reference model"""
    instruct_base_model_path: str | None = None
    """where the instruct model is an adapter of peft: its base, if it is not where adapter_config.json says"""
    reward_base_model_path: str | None = None
    """where the reward model is an adapter of peft: its base, if it is not where adapter_config.json says"""
    reference_base_model_path: str | None = None
    """where the reference model is an adapter of peft: its base, if it is not where adapter_config.json says"""
    dataset_split: str | None = None
    """split of a folder or hub dataset; default: the only one"""
    dataset_revision: str | None = None
    """hub commit of the dataset"""
    image_root: str | None = None
    """the only folder under which image paths of the dataset may be opened; without it only bytes are read"""
    columns: str | None = None
    """the dataset's names of columns, as in question=prompt,image=picture; NAME= leaves a column of that name unread,
    and idx= numbers the rows"""
    question: str | None = None
    """what is asked in each row of a dataset without questions, or about each picture of a folder"""
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
    """only the first N questions; a later start may ask more"""
    continue_from_stage: int = 0
    """0 sample, 1 score, 2 pair; earlier stages must be complete"""
    stop_after_stage: int = 2
    """0 sample, 1 score, 2 pair"""
    num_shards: int = 1
    """this job takes units u with u % num_shards == shard_index"""
    shard_index: int = 0
    """see num_shards"""
    unit_size: int | None = None
    """questions a unit, or auto: that of the units that are there, or number of questions / 1024, between 8 and 256"""
    rewards: str = DEFAULT
    """sources of reward, as in implicit,contrast; known: implicit, contrast, yesno, scalar, critic, rule"""
    yesno_model_path: str | None = None
    """model that is asked whether an answer is right: local folder or hub id; needed for the reward yesno"""
    yesno_base_model_path: str | None = None
    """where that model is an adapter: its base, if it is not where adapter_config.json says"""
    yesno_model_name: str | None = None
    """family name; default: from config.json"""
    yesno_model_revision: str | None = None
    """hub commit of that model"""
    yesno_chat_template_kwargs: str | None = None
    """more arguments of that model's chat template, as a JSON object"""
    yesno_template: str | None = None
    """file with what it is asked about an answer, with {question} and {answer} in it, or several of an aspect each, as
    in faithful=one.txt,helpful=two.txt; default: whether the image supports every statement"""
    scalar_model_path: str | None = None
    """reward model with a head of one number: local folder or hub id; needed for the reward scalar"""
    scalar_base_model_path: str | None = None
    """where that model is an adapter: its base, if it is not where adapter_config.json says"""
    scalar_model_name: str | None = None
    """family name; default: from config.json"""
    scalar_model_revision: str | None = None
    """hub commit of that model"""
    scalar_chat_template_kwargs: str | None = None
    """more arguments of that model's chat template, as a JSON object"""
    critic_model_path: str | None = None
    """model that writes a verdict on each answer: local folder or hub id; needed for the reward critic"""
    critic_base_model_path: str | None = None
    """where that model is an adapter: its base, if it is not where adapter_config.json says"""
    critic_model_name: str | None = None
    """family name; default: from config.json"""
    critic_model_revision: str | None = None
    """hub commit of that model"""
    critic_chat_template_kwargs: str | None = None
    """more arguments of that model's chat template, as a JSON object: {"enable_thinking": false}"""
    critic_template: str | None = None
    """file with what it is asked, and where its number stands in what it writes"""
    rule: str | None = None
    """rule of the reward rule: the name of a built-in one, or FILE.py:function, or several of an aspect each, as in
    faithful=rules.py:faithful,right=contains"""
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
    those two, or the mean or only number of the first source, or all its aspects"""
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
    length_balance: float = 0.5
    """words by which chosen answers may be longer on average: the longest differences are dropped until then; 1000
    drops none"""
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
    """CPU threads a rank, or auto: OMP_NUM_THREADS, or cores / ranks; a container has the cores of its CPU limit"""
    memory_fraction: float = 0.9
    """share of a GPU's memory that a rank may use; what follows from it is fixed at the first start"""
    zero3: Literal["auto", "on", "off"] = "auto"
    """split the models over the ranks (DeepSpeed ZeRO-3); auto: where a GPU cannot hold one whole"""
    zero3_config: str | None = None
    """DeepSpeed's settings as JSON; default: those of launch/deepspeed/zero3.json"""
    compile_layers: bool = False
    """run answers through layers by torch.compile, not the engine's kernels: a minute more to load, other rounding"""
    require_fast: bool = False
    """an error where a model does not fit the fast path, or its layers the kernels of a GPU, instead of a warning"""
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

    def check_type(self, name: str) -> None:
        """Hold a field to its annotation; a whole number in a float field becomes one, so that 1 equals 1.0.

        Raises UserError with the field's name, its value, and what was expected.
        """
        annotation, value = TYPES[name], getattr(self, name)
        kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        if value is None and type(None) in kinds:
            return
        kind = kinds[0]
        if kind is float and type(value) is int and abs(value) <= 2**53:
            value = float(value)
            object.__setattr__(self, name, value)
        shown = json.dumps(value, default=str)
        if typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            require(value in choices, f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, got {shown}")
            return
        quote = f"; in YAML, {_in_quotes(name, value)}" if kind is str else ""
        quote = "; leave it out for its default" if value is None else quote
        require(type(value) is kind, f"{name} must be {_EXPECTED[kind]}, got {shown}{quote}")
        require(kind is not float or math.isfinite(value), f"{name} must be a finite number, got {shown}")
        require(kind is not str or value.strip(), f"{name} is empty; is a shell variable unset?")
        # Python's stand-ins for bytes that are no UTF-8; Arrow and tokenizers take no such name of a file.
        encodable = kind is not str or not re.search("[\ud800-\udfff]", value)
        require(encodable, f"{name} must be text in UTF-8, got {shown}; rename the file or folder")


# Flags that are text with commas.
_LISTS = ("rewards", "columns", "export", "rank_by", "yesno_template", "rule")


def _in_quotes(name: str, value: object) -> str:
    """How a flag that is text is written where YAML made a list or a mapping of it."""
    if isinstance(value, dict) and name.endswith("args"):
        return f"write it as text: {name}: '{json.dumps(value, default=str)}'"
    # YAML's null is a column that is not read.
    named = value.items() if isinstance(value, dict) else ()
    items = [f"{key}={'' if one is None else one}" for key, one in named] if isinstance(value, dict) else value
    if name in _LISTS and isinstance(items, list) and all(isinstance(item, str | int | float) for item in items):
        return f"write it as text: {name}: {','.join(map(str, items))}"
    return "put it in quotes"


# Those that are paths.
PATHS = (
    "instruct_model_path", "reward_model_path", "reference_model_path", "instruct_base_model_path",
    "reward_base_model_path", "reference_base_model_path", "dataset_path", "work_dir", "image_root", "answers",
    "chat_template", "zero3_config", "yesno_model_path", "yesno_template", "yesno_base_model_path",
    "scalar_model_path", "scalar_base_model_path", "critic_model_path", "critic_base_model_path", "critic_template",
)  # fmt: skip
# Flags of earlier versions, and what became of them.
GONE = {
    "lookahead": "on a GPU the next unit always starts as soon as rows are free, with the same bytes for any number of "
    "ranks; on a CPU, whose products depend on the answers beside one, never. Leave it out",
}
# Flags, by names that other programs give to what they set.
CALLED_ELSEWHERE = {
    **dict.fromkeys(("k", "n", "samples", "num_samples", "num_generations", "num_return_sequences"), "sample_k"),
    **dict.fromkeys(("model", "model_path", "model_id", "model_name_or_path"), "instruct_model_path"),
    **dict.fromkeys(("data", "questions", "train_file"), "dataset_path"),
    **dict.fromkeys(("out", "output", "output_dir", "save_dir"), "work_dir"),
    **dict.fromkeys(("prompt", "instruction"), "question"),
    **dict.fromkeys(("max_samples", "num_questions"), "limit"),
    **dict.fromkeys(("format", "formats"), "export"),
    **dict.fromkeys(("images", "image_dir", "image_folder"), "image_root"),
    "max_length": "max_new_tokens",
    "model_name": "instruct_model_name",
    "precision": "dtype",
}
FIELD_NAMES = tuple(field.name for field in fields(Flags))
# A flag that is not here is required.
DEFAULTS = {field.name: field.default for field in fields(Flags) if field.default is not MISSING}
TYPES = typing.get_type_hints(Flags)
