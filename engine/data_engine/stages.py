"""The table of stages: what a run computes unit by unit, and the sources of reward that are made of it. No torch here.

A stage is a folder of units. The loop, status, resume, summary and pairing read this table, and know no stage by name;
the table names functions as text, so that all of them may import it.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from data_engine import schemas
from data_engine.errors import UserError, nearest
from data_engine.flag_files import names_in

# What --continue_from_stage and --stop_after_stage count in: answers, every source of reward, pairs.
SAMPLE, REWARD, PAIR = 0, 1, 2


# What every unit is bound to: the dataset, how its rows are read and cut, and how exactly is computed. How many of its
# rows a run asks, --limit, shapes none but the last: see job/published.py.
EVERY_UNIT = ("dataset", "columns", "question", "system", "unit_size", "device", "dtype")
# What every unit that a model computes is bound to, besides.
EVERY_MODEL = ("compile_layers",)
# Settings that decide which pixels a model sees.
PICTURES = ("max_megapixels", "exif")
# What the flags of a template's arguments are called, behind the name of a judge's role.
TEMPLATE_KWARGS = "chat_template_kwargs"
# Settings that decide how a conversation is written for a model.
PROMPTS = ("chat_template", TEMPLATE_KWARGS)

# The role of the model to train, whose tokenizer token ids of answers are of.
TRAINED = "instruct"
# The role of the model that `implicit` takes for the reward model before DPO, where it is not the one to train.
REFERENCE = "reference"
# Roles of models that have a head of one number in the place of logits, or beside them.
HEADED = ("scalar",)
# Roles of models whose log-probs of the same answers are compared; a judge of another role has a prompt of its own.
COMPARED = (TRAINED, REFERENCE, "reward")
# Roles of these judges, whose chat templates have flags of their own.
JUDGES = ("yesno", "scalar", "critic")


def kwargs_flag(role: str) -> str:
    """The field of the configuration with the arguments of a role's chat template."""
    return f"{role}_{TEMPLATE_KWARGS}" if role in JUDGES else TEMPLATE_KWARGS


def model_flags(role: str) -> tuple[str, str, str, str]:
    """The fields of the configuration about the model of a role: its path, family, revision, and an adapter's base."""
    return f"{role}_model_path", f"{role}_model_name", f"{role}_model_revision", f"{role}_base_model_path"


def model_key(role: str) -> str:
    """What the model of a role is called among the bound values."""
    return f"{role}_model"


@dataclass(frozen=True)
class Stage:
    """One kind of unit, and how it is computed."""

    name: str
    """the folder of its units, and what logs, quarantine and status call it"""
    step: int
    """SAMPLE or REWARD"""
    schema: Callable[[pa.DataType], pa.Schema]
    """of a unit's table, for the type of idx"""
    runner: str
    """module:function, which takes a pipeline.runner.StageContext and returns a StageRunner"""
    model: str | None = None
    """role of the model that it runs: its checkpoint is --ROLE_model_path; None runs none"""
    needs: tuple[str, ...] = ()
    """stages whose unit of the same number is read"""
    settings: tuple[str, ...] = ()
    """fields of the configuration that shape its units, besides EVERY_UNIT"""
    elsewhere: bool = False
    """another engine runs the model: here its checkpoint is bound, and its weights are not loaded"""

    @property
    def bound(self) -> tuple[str, ...]:
        """Names of what its units are bound to; job/run_file.py has the values."""
        own = () if self.model is None else (model_key(self.model),)
        return (*EVERY_UNIT, *self.settings, *own, *(EVERY_MODEL if own and not self.elsewhere else ()))


@dataclass(frozen=True)
class Source:
    """A source of reward: the stages that it adds to a run, and the function from their rows to answers' rewards."""

    stages: tuple[Stage, ...]
    rewards: str
    """module:function, see rewards/__init__.py"""
    columns: tuple[str, ...]
    """of an answer's rewards, as --rank_by names them: SOURCE.NAME, or SOURCE where it gives one number"""
    rank_by: tuple[str, ...] = ()
    """those of them that rank where --rank_by names none; empty: all"""
    given: tuple[str, ...] = ()
    """fields of the configuration that it cannot do without, besides the models of its stages"""
    flags: str | None = None
    """module:function of a RunConfig, which returns SourceFlags: what is behind the source's own flags, read once"""
    aspects: str | None = None
    """field of the configuration that may name several aspects: each has a column, SOURCE.NAME, and they have a mean"""
    optional: tuple[Stage, ...] = ()
    """stages of models that a run may name: where it does, such a stage stands in the place of the first of `stages`"""


@dataclass(frozen=True)
class SourceFlags:
    """What the flags of a source of reward name, read and checked."""

    value: object
    """for the source's own runner"""
    bound: Mapping[str, object]
    """values of its stages' settings in the place of the flags' text: a file counts by its content"""
    columns: tuple[str, ...] | None = ()
    """of the dataset, besides schemas.INPUT_COLUMNS, that it reads; None: all that there are"""
    needed_by: str = ""
    """what reads these columns, for messages"""
    warnings: tuple[str, ...] = ()
    """what a person should know of them at each start"""
    reads: Callable[[object], object] | None = None
    """of a cell of these columns; raises ValueError for what cannot stand there"""


SAMPLING = Stage(
    "sampled_answer", SAMPLE, schemas.sampled_answer, "data_engine.pipeline.sample:runner", TRAINED,
    settings=(
        "sample_k", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed", "same_pixels",
        "answers", "sampler", *PICTURES, *PROMPTS,
    ),
)  # fmt: skip
# Answers drawn by vLLM. "vllm_args" is what of it shapes answers: see vllm_settings.py.
SAMPLING_BY_VLLM = replace(
    SAMPLING, runner="data_engine.pipeline.sample:vllm_runner", settings=(*SAMPLING.settings, "vllm_args"),
    elsewhere=True,
)  # fmt: skip
# Answers from a file, published as sampled ones are. "answers" is the file's content, null where answers are sampled;
# "answers_vocabulary" is the tokenizer that the file's token ids are of, null where it has none. By the chat template
# it is told where a thought ends.
GIVEN = Stage(
    SAMPLING.name, SAMPLE, schemas.sampled_answer, "data_engine.pipeline.given:runner",
    settings=("answers", "answers_vocabulary", *PICTURES, *PROMPTS),
)  # fmt: skip


def logps(role: str) -> Stage:
    """Token log-probs of the sampled answers under the model of that role."""
    runner, needs = "data_engine.pipeline.score:runner", (SAMPLING.name,)
    return Stage(f"{role}_logps", REWARD, schemas.logps, runner, role, needs, settings=(*PICTURES, *PROMPTS))


CONTRAST = replace(logps(TRAINED), name="contrast_logps", runner="data_engine.pipeline.score:blind_runner")


def judged(name: str, *settings: str) -> Stage:
    """A number of each sampled answer by a judge of that role."""
    runner, needs = f"data_engine.pipeline.judge:{name}_runner", (SAMPLING.name,)
    return Stage(name, REWARD, schemas.scores, runner, name, needs, settings=(*PICTURES, kwargs_flag(name), *settings))


# A source of reward is one file in rewards/ and one line here.
SOURCES = {
    "implicit": Source(
        (logps("instruct"), logps("reward")),
        "data_engine.rewards.implicit:rewards",
        ("implicit.sum", "implicit.avg", "implicit.min", "implicit.last"),
        ("implicit.sum", "implicit.avg"),
        optional=(logps(REFERENCE),),
    ),
    "contrast": Source(
        (logps("instruct"), CONTRAST),
        "data_engine.rewards.contrast:rewards",
        ("contrast.sum", "contrast.avg"),
        ("contrast.avg",),
    ),
    "yesno": Source(
        (judged("yesno", "yesno_template"),),
        "data_engine.rewards.yesno:rewards",
        ("yesno",),
        flags="data_engine.rewards.yesno:flags",
        aspects="yesno_template",
    ),
    "scalar": Source((judged("scalar"),), "data_engine.rewards.scalar:rewards", ("scalar",)),
    "rule": Source(
        (Stage("rule", REWARD, schemas.ruled, "data_engine.pipeline.rule:runner", None, (SAMPLING.name,),
               settings=("rule", "reference_columns")),),
        "data_engine.rewards.rule:rewards", ("rule",), given=("rule",), flags="data_engine.rewards.rule:flags",
        aspects="rule",
    ),
    "critic": Source(
        (Stage("critic", REWARD, schemas.criticised, "data_engine.pipeline.critic:runner", "critic", (SAMPLING.name,),
               settings=("critic_template", kwargs_flag("critic"), *PICTURES)),),
        "data_engine.rewards.critic:rewards", ("critic",), flags="data_engine.rewards.critic:flags",
    ),
}  # fmt: skip
# The column of the mean of a source's aspects, SOURCE.mean; an aspect of that name stands for itself.
MEAN = "mean"
# What --rewards is where it is not given.
DEFAULT = "implicit"


@dataclass(frozen=True)
class RunStages:
    """The stages of one run, as they follow from its configuration."""

    sampling: Stage = SAMPLING
    """the stage that writes the answers: SAMPLING, or what stands in its place"""
    sources: tuple[str, ...] = (DEFAULT,)
    """names of SOURCES, as --rewards has them"""
    named: tuple[str, ...] = ()
    """roles of models of `Source.optional` that the run names"""
    aspects: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """of the sources that are asked about several, in the order in which the run names them"""

    @classmethod
    def of(cls, config: Mapping[str, object]) -> "RunStages":
        """`config` has fields of a RunConfig by name: vars() of one, or what run.json says.

        Raises UserError for sources of reward that are not known.
        """
        sources = chosen(config.get("rewards") or DEFAULT)
        sampling = SAMPLING_BY_VLLM if config.get("sampler") == "vllm" else SAMPLING
        aspects = {name: names_in(config.get(SOURCES[name].aspects)) for name in sources if SOURCES[name].aspects}
        return cls(GIVEN if config.get("answers") is not None else sampling, sources, _named(config), aspects)

    def source(self, name: str) -> Source:
        """A source of reward with the stages and columns that it has in this run."""
        found = SOURCES[name]
        for stage in found.optional:
            if stage.model in self.named:
                found = replace(found, stages=(stage, *found.stages[1:]))
        if aspects := self.aspects.get(name):
            [stage] = found.stages
            schema = functools.partial(stage.schema, columns=[*map(schemas.score_name, sorted(aspects))])
            columns = tuple(f"{name}.{aspect}" for aspect in aspects)
            mean = (f"{name}.{MEAN}",) if len(aspects) > 1 and MEAN not in aspects else ()
            stage = replace(stage, schema=schema)
            found = replace(found, stages=(stage,), columns=(*columns, *mean), rank_by=columns)
        return found

    @functools.cached_property
    def by_name(self) -> dict[str, Stage]:
        """In their order: the answers, then the stages of the sources, those that run the same model together."""
        found = _by_name(self.sampling, map(self.source, self.sources))
        return {stage.name: stage for stages in by_model(found.values()) for stage in stages}

    @property
    def columns(self) -> tuple[str, ...]:
        """The reward columns of the run: those of each source."""
        return tuple(column for source in self.sources for column in self.source(source).columns)

    @property
    def rank_by(self) -> tuple[str, ...]:
        """The reward columns that rank where --rank_by names none: those of `implicit`, or of the first source."""
        source = self.source("implicit" if "implicit" in self.sources else self.sources[0])
        return source.rank_by or source.columns

    def summed_up(self, rank_by: Sequence[str]) -> tuple[str, ...]:
        """The reward columns whose totals a run tells: those that rank, and then more of its sources.

        A source adds its default columns where none of its columns ranks, or where all of them rank by default.
        """
        found = list(rank_by)
        for name in self.sources:
            source = self.source(name)
            # Of aspects, each is told whichever ranks.
            if not SOURCES[name].rank_by or not set(source.columns) & set(rank_by):
                found += source.rank_by or source.columns
        return tuple(dict.fromkeys(found))

    @property
    def compared(self) -> tuple[str, ...]:
        """The models whose log-probs `implicit` compares, whether it is among the sources or not: before DPO, after."""
        return tuple(stage.model for stage in self.source("implicit").stages)

    @property
    def roles(self) -> tuple[str, ...]:
        """The models of the run, in the order in which they are first needed."""
        return tuple(dict.fromkeys(stage.model for stage in self.by_name.values() if stage.model))

    @property
    def given(self) -> tuple[str, ...]:
        """Fields of the configuration that the run cannot do without."""
        paths = (f"{role}_model_path" for role in self.roles)
        return tuple(dict.fromkeys([*paths, *(name for source in self.sources for name in SOURCES[source].given)]))

    def why_given(self, name: str) -> str:
        """What needs a field of `given`."""
        if f"{self.sampling.model}_model_path" == name:
            return "it samples the answers"
        needing = [
            source for source in self.sources
            if name in SOURCES[source].given
            or name in {f"{stage.model}_model_path" for stage in self.source(source).stages}
        ]  # fmt: skip
        return f"--rewards {needing[0]} needs it"

    def between(self, first: int, last: int) -> list[Stage]:
        """The stages from one step to another, both included."""
        return [stage for stage in self.by_name.values() if first <= stage.step <= last]


def compared(run_file: Mapping) -> tuple[str, ...]:
    """`RunStages.compared` of what run.json says, which may say nothing."""
    return RunStages(named=_named(run_file.get("config", {}))).compared


def chosen(names: str) -> tuple[str, ...]:
    """The sources that a list such as "implicit,contrast" names, in its order. Raises UserError for what is unknown."""
    found = [name.strip() for name in names.split(",")]
    for name in found:
        if name not in SOURCES:
            told = f'rewards has "{name}"' if name else f'rewards has an empty name in "{names}"'
            raise UserError(f"{told}; known: {', '.join(SOURCES)}{nearest(name, SOURCES)}")
        if found.count(name) > 1:
            raise UserError(f'rewards names "{name}" twice; leave one of them out')
    return tuple(found)


def known() -> dict[str, Stage]:
    """Every stage that any run may have, by the name of its folder; that of the answers is SAMPLING here."""
    found = _by_name(SAMPLING, SOURCES.values())
    return found | {stage.name: stage for source in SOURCES.values() for stage in source.optional}


def by_model(stages: Iterable[Stage]) -> Iterator[list[Stage]]:
    """Stages in groups that run the same model, in the order in which the models are first needed."""
    stages = list(stages)
    for model in dict.fromkeys(stage.model for stage in stages):
        yield [stage for stage in stages if stage.model == model]


def optional_roles(sources: Iterable[str]) -> tuple[str, ...]:
    """Roles of models that a run with these sources of reward may name or not."""
    return tuple(stage.model for source in sources for stage in SOURCES[source].optional)


def _named(config: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(role for role in optional_roles(SOURCES) if config.get(f"{role}_model_path") is not None)


def _by_name(sampling: Stage, sources: Iterable[Source]) -> dict[str, Stage]:
    stages = [sampling, *(stage for source in sources for stage in source.stages)]
    return {stage.name: stage for stage in stages}
