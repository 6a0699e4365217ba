"""The table of stages: what a run computes unit by unit, and the sources of reward that are made of it. No torch here.

A stage is a folder of units. The loop, status, resume, summary and pairing read this table, and know no stage by name;
the table names functions as text, so that all of them may import it.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from data_engine import schemas

# What --continue_from_stage and --stop_after_stage count in: answers, every source of reward, pairs.
SAMPLE, REWARD, PAIR = 0, 1, 2


# What every unit is bound to: the rows of the dataset, how they are read and cut, and how exactly is computed.
EVERY_UNIT = ("dataset", "columns", "system", "limit", "unit_size", "device", "dtype")
# Settings that decide which pixels a model sees.
PICTURES = ("max_megapixels", "exif")
# Settings that decide how a conversation is written for a model.
PROMPTS = ("chat_template", "chat_template_kwargs")


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
    columns: tuple[str, ...] = ()
    """of the dataset, besides those of every question (schemas.INPUT_COLUMNS)"""
    settings: tuple[str, ...] = ()
    """fields of the configuration that shape its units, besides EVERY_UNIT"""
    elsewhere: bool = False
    """another engine runs the model: here its checkpoint is bound, and its weights are not loaded"""

    @property
    def bound(self) -> tuple[str, ...]:
        """Names of what its units are bound to; job/run_file.py has the values."""
        return (*EVERY_UNIT, *self.settings, *([model_key(self.model)] if self.model else []))


@dataclass(frozen=True)
class Source:
    """A source of reward: the stages that it adds to a run, and the function from their rows to an answer's rewards."""

    stages: tuple[Stage, ...]
    rewards: str
    """module:function, see rewards/__init__.py"""


SAMPLING = Stage(
    "sampled_answer", SAMPLE, schemas.sampled_answer, "data_engine.pipeline.sample:runner", "instruct",
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


# A source of reward is one file in rewards/ and one line here.
SOURCES = {
    "implicit": Source((logps("instruct"), logps("reward")), "data_engine.rewards.implicit:rewards"),
}
# The sources of a run, in the order in which their stages are computed.
CHOSEN = ("implicit",)


@dataclass(frozen=True)
class RunStages:
    """The stages of one run, as they follow from its configuration."""

    sampling: Stage = SAMPLING
    """the stage that writes the answers: SAMPLING, or what stands in its place"""
    sources: tuple[str, ...] = field(default_factory=lambda: CHOSEN)
    """names of SOURCES, in the order in which their stages are computed"""

    @classmethod
    def of(cls, config: Mapping[str, object]) -> "RunStages":
        """`config` has fields of a RunConfig by name: vars() of one, or what run.json says."""
        if config.get("answers") is not None:
            return cls(GIVEN)
        return cls(SAMPLING_BY_VLLM if config.get("sampler") == "vllm" else SAMPLING)

    @functools.cached_property
    def by_name(self) -> dict[str, Stage]:
        """In their order: the answers, then the stages of each source."""
        return _by_name(self.sampling, (SOURCES[source] for source in self.sources))

    @property
    def roles(self) -> tuple[str, ...]:
        """The models of the run, in the order in which they are first needed."""
        return tuple(dict.fromkeys(stage.model for stage in self.by_name.values() if stage.model))

    def between(self, first: int, last: int) -> list[Stage]:
        """The stages from one step to another, both included."""
        return [stage for stage in self.by_name.values() if first <= stage.step <= last]


def known() -> dict[str, Stage]:
    """Every stage that any run may have, by the name of its folder; that of the answers is SAMPLING here."""
    return _by_name(SAMPLING, SOURCES.values())


def by_model(stages: Iterable[Stage]) -> Iterator[list[Stage]]:
    """Stages in groups that run the same model, in the order in which the models are first needed."""
    stages = list(stages)
    for model in dict.fromkeys(stage.model for stage in stages):
        yield [stage for stage in stages if stage.model == model]


def _by_name(sampling: Stage, sources: Iterable[Source]) -> dict[str, Stage]:
    stages = [sampling, *(stage for source in sources for stage in source.stages)]
    return {stage.name: stage for stage in stages}
