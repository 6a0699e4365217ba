"""The resolved configuration of a run: a frozen dataclass, checked on construction. Imports no torch.

Its fields are those of flags.py.
"""

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.config_checks import CHECKS, WITHOUT_RANK
from data_engine.errors import Collected, UserError, apart, nearest
from data_engine.flag_files import read_text
from data_engine.flags import DEFAULTS, FIELD_NAMES, Flags, require
from data_engine.schemas import INPUT_COLUMNS, OPTIONAL_COLUMNS, REFERENCE_COLUMNS
from data_engine.stages import (
    COMPARED,
    JUDGES,
    SOURCES,
    TRAINED,
    RunStages,
    SourceFlags,
    kwargs_flag,
)
from data_engine.tables import load
from data_engine.vllm_settings import read_args

# Arguments of transformers' apply_chat_template that the engine gives itself.
_OWN_TEMPLATE_ARGUMENTS = (
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "messages", "padding",
    "return_dict", "return_tensors", "tokenize", "truncation",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig(Flags):
    """What `data-engine run` was told, checked, and what follows from it."""

    def __post_init__(self) -> None:
        """Raises UserError for what does not hold, UserErrors where that is more than one thing."""
        Collected(error for _, error in self.problems()).raise_any()

    @classmethod
    def draft(cls, values: Mapping[str, object], wrong: Iterable[str] = ()) -> "Draft":
        """A configuration to look at further, whatever is wrong with it: such fields have their defaults.

        `wrong` are fields that are known to be wrong, or are missing; nothing is said of them. A field that has no
        default is None then.
        """
        config = object.__new__(cls)
        for name in FIELD_NAMES:
            default = DEFAULTS.get(name)
            object.__setattr__(config, name, default if name in wrong else values.get(name, default))
        found = config.problems(wrong)
        blamed = {name for name, _ in found}
        for name in blamed:
            object.__setattr__(config, name, DEFAULTS.get(name))
        return Draft(config, [error for _, error in found], frozenset({*wrong, *blamed}))

    def problems(self, wrong: Iterable[str] = ()) -> list[tuple[str, UserError]]:
        """Each mistake, by the field that is to blame; of fields in `wrong` nothing is said."""
        found: list[tuple[str, UserError]] = []
        known = set(wrong)
        for name in FIELD_NAMES:
            if name not in known:
                self._note(lambda config, name=name: config.check_type(name), name, known, found)
        for check in CHECKS:
            if not known.intersection(check.fields):
                self._note(check.hold, check.fields[0], known, found)
        return found

    def _note(self, hold: Callable, name: str, known: set[str], found: list[tuple[str, UserError]]) -> None:
        try:
            hold(self)
        except UserError as error:
            found += [(name, one) for one in apart(error)]
            known.add(name)

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

    @functools.cached_property
    def column_names(self) -> dict[str, str]:
        """What --columns says: our name of a column -> the dataset's, which is empty for one that is not read.

        Several of ours may be one of the dataset's.
        Raises UserError for what cannot be meant; whether the dataset has these columns is not known here.
        """
        found: dict[str, str] = {}
        for item in self.columns.split(",") if self.columns is not None else ():
            ours, equals, theirs = (part.strip() for part in item.partition("="))
            require(bool(equals), f"columns must be like question=prompt,image=picture, got {json.dumps(item)}")
            known = (*INPUT_COLUMNS, *OPTIONAL_COLUMNS, *REFERENCE_COLUMNS)
            # As pandas and `datasets` rename columns, the old name first.
            hint = f"; did you mean {theirs}={ours}?" if theirs in known else nearest(ours, known)
            told = f"columns names {json.dumps(ours)}, which is not one of {', '.join(known)}{hint}"
            require(ours in known, told)
            require(ours not in found, f"columns names {ours} twice")
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
    def least_answers(self) -> int:
        """How many answers a question must have, so that --strategy can pair it: --rank, where it goes by that."""
        return 1 if self.strategy in WITHOUT_RANK else self.rank

    @property
    def chat(self) -> ChatSettings:
        """What the flags say about chat templates."""
        return ChatSettings(self.chat_template_text, self.template_kwargs(TRAINED))

    def chat_of(self, role: str) -> ChatSettings:
        """What they say about that of a role: a judge has a template of its own."""
        if role in COMPARED:
            return self.chat
        if role in JUDGES:
            return ChatSettings(None, self.template_kwargs(role), f"--{kwargs_flag(role)}")
        return NO_CHAT_SETTINGS

    @functools.cached_property
    def vllm_options(self) -> dict[str, object]:
        """The object of --vllm_args. Raises UserError where it is none, or has what the run gives itself."""
        return read_args(self.vllm_args)

    @property
    def draws_by_vllm(self) -> bool:
        """Whether this start may draw answers by vLLM."""
        return self.sampler == "vllm" and self.continue_from_stage == 0

    def template_kwargs(self, role: str) -> dict[str, object]:
        """The arguments of a role's chat template: of --chat_template_kwargs, or of a judge's own flag.

        Raises UserError for what is no JSON object, and for arguments that the engine sets.
        """
        flag = kwargs_flag(role)
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


class Draft(NamedTuple):
    """A configuration that may have mistakes."""

    config: RunConfig
    problems: list[UserError]
    wrong: frozenset[str]
    """its fields that hold a default in the place of what was given, or None where nothing was"""

    def raise_any(self) -> None:
        """Raise its mistakes: UserError, UserErrors where there are several."""
        Collected(self.problems).raise_any()
