"""run.json: what this work directory is a run of, and what its units are bound to.

`bound` holds what shapes a number: settings, the dataset and the models by their content. A unit names the values that
it was computed from. A start with another value is refused, by name, where a published unit depends on it; else it
replaces the value. Pairing settings, shards, launcher, threads and debug are not bound. `frozen` holds figures that the
first start chose for this machine, `places` where the dataset was found last.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import data_engine
from data_engine import stages
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job import limit
from data_engine.questions.dataset import Questions
from data_engine.schemas import REFERENCE_COLUMNS
from data_engine.stages import RunStages, Stage
from data_engine.store import disk, units
from data_engine.store.absent import is_there
from data_engine.store.atomic import alone_with, creating, read_current, rewrite
from data_engine.store.file_hashes import HashFiles
from data_engine.store.made_from import differing_names, told
from data_engine.store.units import auto_unit_size
from data_engine.vllm_settings import shaping

# It imports torch, which the checks before a run do without.
if TYPE_CHECKING:
    from data_engine.job.checkpoints import Checkpoint
    from data_engine.models.device import Target

# Of the work directory's files; raised where they change so that an older program's cannot be read.
LAYOUT = 2
NO_CHECKPOINTS: Mapping = MappingProxyType({})
LIBRARIES = ("torch", "transformers", "tokenizers", "sentencepiece", "pillow", "numpy", "pyarrow", "nltk")


def bound_settings(config: RunConfig, num_questions: int, target: "Target | None") -> dict:
    """The bound values that are no content, by name. None as `target`: those that a device decides are left out."""
    # Of a source that this start does not use, the values stay as they are.
    every = [stages.SAMPLING, *config.stages.by_name.values()]
    names = {name for stage in every for name in stage.bound}
    bound = {name: value for name, value in asdict(config).items() if name in names}
    if config.answers is not None:
        # By its content.
        del bound["answers"]
    bound |= _canonical(config)
    if target is None:
        chosen = {"device": config.device.partition(":")[0], "dtype": config.dtype}
        bound = {name: value for name, value in bound.items() if name not in chosen}
        bound |= {name: value for name, value in chosen.items() if value != "auto"}
    else:
        bound |= {"device": target.device.type, "dtype": target.dtype_name}
    for flags in config.source_flags.values():
        bound |= flags.bound
    return bound | {"unit_size": unit_size(config, num_questions)}


def unit_size(config: RunConfig, num_questions: int) -> int:
    """--unit_size; where it is auto, that of the units that are there, or else what the number of questions makes it.

    Raises UserError where run.json is one of something else.
    """
    if config.unit_size is not None:
        return config.unit_size
    work_dir = Path(config.work_dir)
    found = read(work_dir)
    there = found is not None and has_units(work_dir)
    return found["bound"]["unit_size"] if there else auto_unit_size(num_questions)


def content(
    hash_files: HashFiles,
    questions: Questions | None = None,
    answers: str | None = None,
    checkpoints: "Mapping[str, Checkpoint]" = NO_CHECKPOINTS,
) -> dict[str, str]:
    """The bound values that are content: of a dataset, of a file of answers and of the models by role."""
    found = {stages.model_key(role): checkpoint.fingerprint(hash_files) for role, checkpoint in checkpoints.items()}
    if answers is not None:
        [found["answers"]] = hash_files([Path(answers)])
    return found if questions is None else {"dataset": questions.fingerprint(hash_files), **found}


def _canonical(config: RunConfig) -> dict[str, str | None]:
    """The same value for each way to write the same: a template by its content, JSON and columns in one order.

    The engine's own sampler is None, and so are layers as they are: units that were computed before there was a choice
    do not name it.
    """
    # Columns that only sources of reward read shape nothing but these.
    given = {ours: theirs for ours, theirs in config.column_names.items() if ours not in REFERENCE_COLUMNS}
    names = {ours: theirs for ours, theirs in given.items() if ours != theirs}
    template = config.chat_template_text
    roles = (stages.TRAINED, *(role for role in stages.JUDGES if role in config.roles))
    template_kwargs = {stages.kwargs_flag(role): config.template_kwargs(role) for role in roles}
    return {
        "columns": ",".join(f"{ours}={names[ours]}" for ours in sorted(names)) or None,
        "chat_template": hashlib.sha256(template.encode()).hexdigest() if template is not None else None,
        **{name: json.dumps(value, sort_keys=True) if value else None for name, value in template_kwargs.items()},
        "compile_layers": config.compile_layers or None,
        "sampler": None if config.sampler == "native" else config.sampler,
        **({"vllm_args": shaping(config.vllm_options)} if config.sampler == "vllm" else {}),
    }


def describe(config: RunConfig, questions: Questions, bound: Mapping, **others: object) -> dict:
    """The content of run.json for this start; `others` are entries that the caller knows."""
    return {
        "layout": LAYOUT,
        "bound": dict(bound),
        "units": limit.described(questions, bound["unit_size"]),
        "config": asdict(config),
        "places": places(config),
        "versions": {
            "data_engine": data_engine.__version__,
            "python": platform.python_version(),
            **_library_versions(),
        },
        **others,
    }


@functools.cache
def _library_versions() -> Mapping[str, str]:
    # Each is parsed out of a file of metadata, which takes longer than all else of run.json.
    return {name: version(name) for name in LIBRARIES}


def places(config: RunConfig) -> dict:
    """Where the dataset is; absolute, so that a command started in another folder finds it."""
    named = {"dataset_path": config.dataset_path, "image_root": config.image_root}
    return {name: str(Path(path).absolute()) if path and Path(path).exists() else path for name, path in named.items()}


def require_same(work_dir: Path, bound: Mapping, run_stages: RunStages) -> None:
    """Raise UserError where run.json is there, and a published unit depends on another value of `bound`."""
    found = read(work_dir)
    if found is not None:
        _refuse_held(work_dir, found["bound"], bound, run_stages)


def has_units(work_dir: Path) -> bool:
    """Whether a unit of any stage is published."""
    return any(units.published(work_dir, stage) for stage in stages.known())


def open_run(work_dir: Path, described: dict) -> tuple[dict, list[str]]:
    """Create run.json, or compare with the one that is there; returns it, and warnings for a person to read.

    Bound values on which no published unit depends are replaced. Raises UserError naming each other one that differs.
    """
    path = make_work_dir(work_dir) / "run.json"
    # As it is read back: a tuple differs from its list, and a start that changes nothing must write nothing.
    described = json.loads(json.dumps(described))
    with _writing(work_dir):
        if not is_there(path):
            with creating(path) as beside:
                beside.write_text(json.dumps(described, indent=1))
    found, new = _updated(work_dir, described)
    if new != found:

        def changed() -> str | None:
            nonlocal found, new
            # Another start may add what it brings at the same time.
            found, new = _updated(work_dir, described)
            return json.dumps(new, indent=1) if new != found else None

        rewrite(path, changed)
    then, now = _versions(found), _versions(described)
    changed = [f"{name} {then[name]} -> {now[name]}" for name in then if name in now and now[name] != then[name]]
    warnings = [f"this run was started with other versions ({', '.join(changed)})"] if changed else []
    before, threads = new.get("threads"), described.get("threads")
    if threads is not None and before not in (None, threads):
        warnings.append(
            f"this run began with {before} CPU threads a rank, and this start has {threads}: log-probs may differ from "
            f"those of the beginning in their last digits; --threads {before} keeps to them"
        )
    return new, warnings


def require_no_loop(work_dir: Path) -> None:
    """Raise UserError for the folder of a loop or of a round: with a run in it, the loop would not go on."""
    if (work_dir / "run.json").exists():
        return
    if any(work_dir.glob("round-*/config.yaml")):
        raise UserError(f'work_dir "{work_dir}" is the folder of a loop: choose another one, or go on with the loop')
    if work_dir.name.startswith("round-") and (work_dir / "config.yaml").exists() and (work_dir / "run").is_dir():
        raise UserError(f'work_dir "{work_dir}" is a round of a loop, whose run is in "{work_dir / "run"}"')


def make_work_dir(work_dir: Path) -> Path:
    """Create the folder. Raises UserError where it cannot be, and as require_no_loop does."""
    with _writing(work_dir):
        require_no_loop(work_dir)
        work_dir.mkdir(parents=True, exist_ok=True)
    return work_dir


@contextlib.contextmanager
def _writing(work_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if disk.is_trouble(error):
            raise
        raise disk.not_writable(work_dir, error) from error


def read(work_dir: Path) -> dict | None:
    """run.json, or None where there is none. Raises UserError where it is one of something else."""
    path = work_dir / "run.json"
    try:
        found = json.loads(read_current(path))
        layout = found.get("layout", 1) if "bound" in found else None
        # A start works by the budgets that are written here, not by its own.
        _ = [found[name] for name in ("bound", "frozen", "versions")]
    # A file in the place of the folder is told by the check of the place.
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise disk.forbidden(error, work_dir) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a run.json of this program; choose another work_dir. If one of it was damaged, remove it: "
            "units say themselves what they were computed from, and the same command goes on"
        ) from error
    if layout != LAYOUT:
        raise UserError(
            f"{path} is of layout {layout}, written by another version of this program, which reads layout {LAYOUT}: "
            "finish the run with that version, or choose another work_dir"
        )
    return found


@contextlib.contextmanager
def current(work_dir: Path, stage: Stage, bound: Mapping, figures: Mapping) -> Iterator[None]:
    """Inside, run.json keeps the values that a unit of this stage was computed with, and the unit may be published.

    It keeps the `figures` too: the frozen ones, on which the last bits of every unit depend, and how many questions the
    run asks. A start with other values replaces those on which no published unit depends; it looks for units, and
    replaces, while no process is inside. It does not wait for a process that is stopped inside for a minute, between
    two system calls: where the unit of that process was the first, both starts are refused.
    Raises UserError where another start has replaced a value, or run.json is gone: the unit must not be published.
    """
    with alone_with(work_dir / "run.json", fcntl.LOCK_SH):
        found = read(work_dir)
        if found is None:
            raise UserError(
                f'"{work_dir / "run.json"}" is gone: the work_dir was removed or moved while this start was at work. '
                f"This unit of {stage.name} is dropped"
            )
        mine = {name: bound.get(name) for name in stage.bound} | figures
        theirs = found["bound"] | found["frozen"] | found.get("units", {})
        differing = differing_names(theirs, mine)
        if differing:
            raise UserError(
                f"another start of work_dir {work_dir} has changed the run meanwhile: "
                f"{told(differing, mine, theirs)}. This unit of {stage.name} is dropped"
            )
        yield


def _refuse_held(work_dir: Path, theirs: Mapping, ours: Mapping, run_stages: RunStages) -> None:
    """Raise UserError for each name of `ours` that differs, and that shaped a published unit."""
    # Values of models that this start does not use stay as they are.
    differing = differing_names(theirs, ours)
    every = stages.known() | run_stages.by_name
    holding = [(name, stage.name) for name in differing for stage in every.values()
               if name in stage.bound and units.published(work_dir, stage.name)]  # fmt: skip
    if holding:
        names, by = (list(dict.fromkeys(each)) for each in zip(*holding, strict=True))
        ways = "Go on with its settings or choose another work_dir"
        if stages.SAMPLING.name not in by:
            # No other stage goes by these: answers, the dearest part, are kept.
            folders = ", ".join(str(work_dir / stage) for stage in by)
            ways += f"; or move {folders} away, which computes these anew from the same answers"
        raise UserError(
            f"work_dir {work_dir} holds another run: {told(names, theirs, ours)}; units of {', '.join(by)} were "
            f"computed with it. {ways}"
        )


def _versions(described: Mapping) -> dict[str, str]:
    """Of all that a start computed by; that of the sampler, if it is a program of its own and the start draws by it."""
    sampler = described.get("sampler") or {}
    own = {sampler["name"]: sampler["version"]} if "version" in sampler else {}
    return described["versions"] | own


def _updated(work_dir: Path, described: dict) -> tuple[dict, dict]:
    """run.json as it is, and with this start's bound values, models and places. Raises UserError as open_run does."""
    found, bound = read(work_dir), described["bound"]
    _refuse_held(work_dir, found["bound"], bound, RunStages.of(described.get("config", {})))
    if asked := described.get("units"):
        limit.require_reach(work_dir, asked["unit_size"], asked["num_questions"])
    replaces = any(found["bound"][name] != value for name, value in bound.items() if name in found["bound"])
    empty = not has_units(work_dir)
    if replaces and empty:
        return found, described
    # What this start does not use, another one that is at work may. The last bits of published units depend on the
    # frozen figures, which stay.
    new = found | {"bound": found["bound"] | bound, "places": described["places"]}
    new |= {"units": asked} if asked else {}
    # By it rewards of stages that no pairing has read yet are made.
    new |= {name: described[name] for name in ("same_tokenizer",) if name in described}
    # With those of an earlier start, no unit was computed.
    new |= {name: described[name] for name in ("threads",) if empty and name in described}
    return found, new | _with_models(found, described)


def _with_models(found: Mapping, described: Mapping) -> dict:
    """The entries "models" and "config" with the models and sources of reward of this start, and their flags.

    A model on which no unit depends may be another one by now, and one that is the same may lie elsewhere; a source
    may be added.
    """
    models, config = described.get("models", {}), described.get("config", {})
    # The columns of every question are bound; those that only sources of reward read may be named by a later start.
    given = {"rewards", "columns", "limit", *(name for source in stages.SOURCES.values() for name in source.given)}
    given |= {name for stage in stages.known().values() for name in stage.settings} - {*stages.SAMPLING.settings}
    # A model that a source may do without is of this start also where it names none.
    optional = stages.optional_roles(stages.chosen(config.get("rewards") or stages.DEFAULT))
    given |= {name for role in optional for name in stages.model_flags(role)}
    flags = {name: value for name, value in config.items()
             if name in given or name.partition("_model_")[0].removesuffix("_base") in models}  # fmt: skip
    entries = {"models": found.get("models", {}) | models, "config": found.get("config", {}) | flags}
    return {name: entry for name, entry in entries.items() if entry}
