"""The flags and the YAML of `data-engine run` into a RunConfig. Imports no torch.

Flags and file are merged into one mapping of names to values, in which a flag wins. RunConfig checks the merged values,
so a wrong value has the same message in either place.
"""

import argparse
import ast
import contextlib
import functools
import inspect
import itertools
import json
import re
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from data_engine.commands.examples import Parser, Whole
from data_engine.commands.meant import meant_by
from data_engine.commands.work_dir import given_path
from data_engine.config import Draft, RunConfig
from data_engine.errors import Collected, UserError
from data_engine.flag_files import each_path, from_home, nearest_path
from data_engine.flags import DEFAULTS, FIELD_NAMES, GONE, PATHS, TYPES, Flags
from data_engine.stages import RunStages

_BOOLEANS = tuple(name for name, kind in TYPES.items() if kind is bool)
_FLAGS = (*FIELD_NAMES, "config", "help")
# Those that commands read themselves.
_OWN_FLAGS = {
    "validate": ("measure", "json"), "submit": ("array", "sbatch", "sbatch_pair"), "loop": ("rounds", "train"),
}  # fmt: skip
# What users of SLURM would give `submit` as its own.
_OF_SBATCH = {
    "account", "begin", "constraint", "cpus-per-gpu", "cpus-per-task", "exclude", "exclusive", "gpus", "gpus-per-node",
    "gpus-per-task", "gres", "job-name", "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "nice",
    "nodelist", "nodes", "ntasks", "ntasks-per-node", "partition", "qos", "requeue", "reservation", "time",
}  # fmt: skip
_FLAGS_ALONE = ("config", "help", *(name for names in _OWN_FLAGS.values() for name in names))
# The shell makes several words of a pattern such as data/*.parquet.
_ONE_VALUE = "flags are written --name value, with one value each, and a folder stands for its files"
# Fields whose "auto" is None in a RunConfig.
_AUTO = ("unit_size", "threads")
# Numbers to the bases of 8 and 60.
_OTHER_BASES = re.compile(r"[-+]?(0[0-7_]+|[\d_]+(:[\d_]+)+(\.[\d_]*)?)")
# Title of a group in the help: its first field.
_GROUPS = {
    "instruct_model_path": "models and data",
    "continue_from_stage": "stages and shards",
    "rewards": "rewards",
    "sample_k": "pairs",
    "temperature": "sampling",
    "dtype": "machine",
    "on_bad_row": "rows and images",
}


def parse(argv: Sequence[str], command: str = "run") -> RunConfig:
    """The configuration that a command line asks for; --help prints and exits. Raises UserError naming each mistake."""
    found = read(argv, command)
    found.raise_any()
    return found.config


def read(argv: Sequence[str], command: str = "run") -> Draft:
    """The configuration that a command line asks for, and all of its mistakes. --help prints and exits."""
    problems, meant = Collected(), set()
    if sum(word.partition("=")[0] == "--config" for word in argv) > 1:
        problems.note(UserError("--config is given twice; name one file, and what differs from it by flags"))
    flags = _read_flags(_known_flags(argv, command, problems, meant), command, problems, meant)
    file = flags.pop("config", None)
    from_file = None
    if file is None:
        from_file = {}
    else:
        with problems.noting():
            from_file = _read_yaml(given_path("--config", file), problems, meant)
    # What a file that cannot be read has in it, nobody knows.
    values = (from_file or {}) | flags
    missing = [name for name in _needed(values) if values.get(name) is None and name not in meant]
    if missing and from_file is not None:
        told = ", ".join(f"--{name}" for name in missing)
        problems.note(UserError(f"missing: {told}; give each as a flag, or by its name in the YAML of --config"))
    absent = {name for name in _needed(values) if values.get(name) is None}
    found = RunConfig.draft({name: normalised(name, value) for name, value in values.items()}, {*absent, *meant})
    for problem in found.problems:
        problems.note(problem)
    return found._replace(problems=problems.found)


def own_options(argv: Sequence[str], command: str, usage: str) -> tuple[dict[str, str], list[str]]:
    """The values of a command's own options by name, and the other words; of an option that is given twice, the last.

    Raises UserError for one without a value.
    """
    options: dict[str, str] = {}
    flags: list[str] = []
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in _OWN_FLAGS[command]:
            flags.append(word)
            continue
        # Not by argparse, which takes a value such as --exclusive for a flag.
        options[name] = value if equals else next(rest, None)
        if options[name] is None:
            raise UserError(f"--{name} needs a value; {usage}")
    return options, flags


def own_number(options: Mapping[str, str], name: str, usage: str, expected: str = "a whole number") -> int:
    """The value of an own option that is a count. Raises UserError where it is missing, or no number of at least 1."""
    text = options.get(name)
    if text is None:
        raise UserError(f"missing: --{name}; {usage}")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f'{name} must be {expected}, at least 1, got "{text}"')
    return int(text)


def _is_yaml(word: str) -> bool:
    return word.lower().endswith((".yaml", ".yml"))


def _needed(values: Mapping[str, object]) -> list[str]:
    """Fields that must be given, in the order of the flags. What is no text, or no source, RunConfig refuses."""
    needed, rewards = {*FIELD_NAMES} - DEFAULTS.keys(), values.get("rewards")
    if rewards is None or isinstance(rewards, str):
        with contextlib.suppress(UserError):
            needed |= set(RunStages.of(values).given)
    return [name for name in FIELD_NAMES if name in needed]


def _read_flags(argv: list[str], command: str, problems: Collected, meant: set[str]) -> dict[str, object]:
    """The values of flags by name; a flag without its value is noted, and left out."""
    while True:
        try:
            found, unknown = _parser(command).parse_known_args(argv)
            break
        except argparse.ArgumentError as error:
            told = "flags are written --name value, and --name=value where the value begins with -"
            problems.note(UserError(f"{error}; {told}"))
            name = (error.argument_name or "").removeprefix("--")
            left = [word for word in argv if word.removeprefix("--").partition("=")[0] != name]
            if len(left) == len(argv):
                return {}
            meant.add(name)
            argv = left
    if unknown:
        told = "a configuration is given as --config FILE" if _is_yaml(unknown[0]) else _ONE_VALUE
        problems.note(UserError(f"unrecognized arguments: {' '.join(unknown)}; {told}"))
    return vars(found)


@functools.cache
def help_texts() -> dict[str, str]:
    """The docstring under each field of Flags, which Python keeps in the source alone."""
    body = ast.parse(textwrap.dedent(inspect.getsource(Flags))).body[0].body
    pairs = itertools.pairwise(body)
    return {field.target.id: text.value.value for field, text in pairs if isinstance(field, ast.AnnAssign)}


def _known_flags(argv: Sequence[str], command: str, problems: Collected, meant: set[str]) -> list[str]:
    """The words without unknown flags and booleans with a value, both of which are noted: argparse would tell them in
    its own words. `meant` gets those that are meant by the unknown ones.
    """
    words, left = list(argv), []
    while words:
        word = words.pop(0)
        name, equals, value = word[2:].partition("=")
        if not word.startswith("--"):
            left.append(word)
        elif name in GONE:
            problems.note(UserError(f"--{name} is gone: {GONE[name]}"))
        elif name not in _FLAGS:
            known = (*_FLAGS, *_OWN_FLAGS.get(command, ()))
            found = meant_by(name, known)
            hint = f"; did you mean --{found}?" if found else f"; data-engine {command} --help lists all"
            if command == "submit" and name in _OF_SBATCH:
                found, hint = None, f'; options of sbatch go into --sbatch: --sbatch "--{name} ..."'
            problems.note(UserError(f"unknown flag --{name}{hint}"))
            meant.update({found} & {*FIELD_NAMES})
            # Its value.
            if not equals and words and not words[0].startswith("-"):
                words.pop(0)
        elif name in _BOOLEANS and (equals or (words and not words[0].startswith("-"))):
            value = value or words.pop(0) if not equals else value
            told = f"--{name} takes no value, got {json.dumps(value)}; leave it out to keep it off"
            problems.note(UserError(told))
        else:
            left.append(word)
    return left


def _parser(command: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"data-engine {command}",
        usage=f"data-engine {command} [--config FILE] [--name value ...]",
        description="Every flag may also stand, by its name, in the YAML of --config; a flag wins over the file.",
        formatter_class=lambda prog: Whole(prog, max_help_position=30, width=110),
        # A flag that is not given is absent from the result, so that the file's value stays.
        argument_default=argparse.SUPPRESS,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML with any of the flags below")
    group = parser
    for name in FIELD_NAMES:
        group = parser.add_argument_group(_GROUPS[name]) if name in _GROUPS else group
        default = "auto" if name in _AUTO else DEFAULTS.get(name)
        shown = " (required)" if name not in DEFAULTS else "" if default is None else f" (default: {default})"
        add_flag(group, name, "" if name in _BOOLEANS else shown)
    return parser


def add_flag(parser: argparse._ActionsContainer, name: str, default: str = "") -> None:
    """Add the flag of a field of RunConfig, whose help ends with `default`; its values still want `normalised`."""
    text = help_texts()[name].replace("%", "%%") + default
    if name in _BOOLEANS:
        parser.add_argument(f"--{name}", action="store_true", help=text)
    else:
        parser.add_argument(f"--{name}", type=str if _is_text(name) else _read_value, metavar=_metavar(name), help=text)


def _metavar(name: str) -> str:
    if typing.get_origin(TYPES[name]) is typing.Literal:
        return f"{{{','.join(typing.get_args(TYPES[name]))}}}"
    return "PATH" if name in PATHS else "TEXT" if _is_text(name) else "N"


def _is_text(name: str) -> bool:
    return TYPES[name] in (str, str | None)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice; yaml.SafeLoader keeps the last value without a word.

    010 and 1:30 stay text, which no flag for a number takes: YAML 1.1 reads 8, to the base of 8, and 90, of minutes.
    """

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


def _number(read: Callable) -> Callable:
    def construct(loader: _Loader, node: yaml.ScalarNode) -> object:
        return node.value if _OTHER_BASES.fullmatch(node.value) else read(loader, node)

    return construct


_Loader.add_constructor("tag:yaml.org,2002:int", _number(yaml.SafeLoader.construct_yaml_int))
_Loader.add_constructor("tag:yaml.org,2002:float", _number(yaml.SafeLoader.construct_yaml_float))


def _read_value(text: str) -> object:
    """A flag's value, read as it would be in the YAML; text that is not YAML stays text, which RunConfig refuses."""
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    # An unset shell variable is not the null of YAML.
    return value if text.strip() else text


def _read_yaml(path: Path, problems: Collected, meant: set[str]) -> dict[str, object]:
    """What a file says of known names; `meant` gets those that are meant by unknown ones, which are noted.

    Raises UserError where it is no mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f'config "{path}" cannot be read: {error.strerror}{nearest_path(path)}') from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f'config "{path}" is not YAML: {" ".join(str(error).split())}') from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f'config "{path}" must be lines of "name: value", got {json.dumps(values, default=str)[:80]}')
    if {"layout", "bound", "config"} <= values.keys():
        raise UserError(
            f'config "{path}" is the run.json of a run, which has more than flags: the README.md of an export of it '
            "has the command that makes its pairs again"
        )
    for name in values:
        if name in GONE:
            problems.note(UserError(f'config "{path}" has {name}, which is gone: {GONE[name]}'))
        elif name not in FIELD_NAMES:
            found = None if name in _FLAGS_ALONE else meant_by(str(name), FIELD_NAMES)
            hint = f"; did you mean {found}?" if found else ""
            if isinstance(values[name], dict):
                hint += "; there are no sections: each flag is a line of its own, by its name"
            elif name in _FLAGS_ALONE:
                hint = f"; it is a flag of the command line alone, --{name}"
            problems.note(UserError(f'config "{path}" has the unknown key {name}{hint}'))
            meant.update({found} & {*FIELD_NAMES})
    return {name: value for name, value in values.items() if name in FIELD_NAMES}


def normalised(name: str, value: object) -> object:
    """A value as RunConfig takes it, where YAML or a shell reads or leaves it otherwise."""
    if TYPES[name] in (float, float | None) and isinstance(value, str):
        # YAML 1.1 reads 1e-3, without a full stop, and -.5 as text.
        with contextlib.suppress(ValueError):
            return float(value)
    if name == "length_alpha" and type(value) in (int, float):
        return str(value)
    if name == "zero3" and isinstance(value, bool):
        return "on" if value else "off"
    if name in _AUTO and value == "auto":
        return None
    if name in ("yesno_template", "rule") and isinstance(value, str):
        return each_path(value, from_home)
    if name in PATHS and isinstance(value, str):
        return from_home(value)
    return value
