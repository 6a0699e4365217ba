"""A round's trainer: the command that a user gives, started with this round's places, and what it must leave behind."""

import contextlib
import os
import re
import shlex
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from data_engine.config import RunConfig
from data_engine.errors import TrainerError, UserError, nearest
from data_engine.flag_files import from_home, nearest_path
from data_engine.models.check import check_folder
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.roles import folder_of, naming_flag
from data_engine.processes.children import Children
from data_engine.rounds.places import Round
from data_engine.stages import TRAINED
from data_engine.store.absent import is_file, matching

PLACES = {
    "model": "the model of the round, which is to be trained",
    "dataset": "the dataset of the round",
    "exports": "the folder of what --export wrote",
    "output": "where the trained model is to be",
    "round": "its number",
    "work_dir": "the work_dir of its run",
}
"""What may stand in braces in --train."""
_PLACE = re.compile(r"\{([A-Za-z_]+)\}")
# What a shell does; without one, it would be handed to the trainer as an argument.
_OF_A_SHELL = re.compile(r"&&|\|\|?|\S*;|<|\d?>\S*|&>\S*|&|\$\w+\S*|\$\{\w+\}\S*")
_SET = re.compile(r"[A-Za-z_]\w*=")
# Programs whose first script is the trainer, read on this machine.
_RUN_SCRIPTS = re.compile(r"(ba|da|z)?sh|python[\d.]*|accelerate|torchrun|deepspeed")
NUM_LINES = 5


def check_command(train: str, has_exports: bool) -> None:
    """Raise UserError for a --train that cannot be a trainer."""
    words = _words(train)
    of_shell = None if "-c" in words else next(filter(_OF_A_SHELL.fullmatch, words), None)
    if of_shell is not None:
        raise UserError(
            f'train has "{of_shell}", which is for a shell, and none starts it: write the commands into a script, as '
            "in --train 'sh train.sh {model} {dataset} {output}'"
        )
    if not words:
        raise UserError(
            "train is empty: give the command that trains, as in --train 'sh train.sh {model} {dataset} {output}'"
        )
    for name in _PLACE.findall(train):
        if name not in PLACES:
            known = ", ".join(f"{{{one}}}" for one in PLACES)
            raise UserError(f"train has {{{name}}}, which stands for nothing; known: {known}{nearest(name, PLACES)}")
    found = set(_PLACE.findall(train))
    if "output" not in found:
        raise UserError("train has no {output}: the trainer must be told where the trained model is to be")
    if not found & {"dataset", "exports", "work_dir"}:
        raise UserError("train has neither {dataset} nor {exports}: the trainer must be told what to train on")
    if "exports" in found and not has_exports:
        raise UserError("train has {exports}, and nothing is exported: name the trainer's format by --export")


def require_program(train: str) -> None:
    """Raise UserError where what it begins with cannot be started here, or the script of that is not there.

    A round comes to its trainer after hours.
    """
    words = _words(train)
    first = words[0]
    why = None if _PLACE.search(first) else _why_no_program(first)
    if why is not None:
        raise UserError(f'train begins with "{first}", {why}')
    script = next((word for word in words[1:] if word.endswith((".sh", ".py")) and not _PLACE.search(word)), None)
    runs_it = _RUN_SCRIPTS.fullmatch(Path(first).name) and not {"-c", "-m"} & {*words}
    if script is not None and runs_it and not is_file(Path(script)):
        raise UserError(f'train names "{script}", which is not there{nearest_path(script)}')


def _why_no_program(word: str) -> str | None:
    """A shell starts what the system alone does not: a script without a first line that names its interpreter."""
    runs = "python" if word.endswith(".py") else "sh"
    found, mend = shutil.which(word), f"begin with what runs it, as in --train '{runs} {word} ...'"
    if found is None and shutil.which(f"./{word}") is not None:
        return f"a file of this folder, where no program is looked for: begin with ./{word}"
    if found is None and _SET.match(word):
        return "which is for a shell, and none starts it: begin with env, as in --train 'env NAME=VALUE sh x.sh ...'"
    if found is None:
        return f"which may not be executed: {mend}" if is_file(Path(word)) else "which is no program on this machine"
    line = b"\0"
    # Who may execute a program need not be allowed to read it.
    with contextlib.suppress(PermissionError), open(found, "rb") as file:
        line = file.readline(1000)
    if not line.startswith(b"#!"):
        # A program that is no script has a byte 0 in its header.
        return None if b"\0" in line else f"a script without a first line such as #!/bin/sh: {mend}"
    if line.endswith(b"\r\n"):
        return "a script with the line ends of Windows: take them out, by dos2unix for instance"
    interpreter = os.fsdecode(b"".join(line[2:].split()[:1]))
    if shutil.which(interpreter) is None:
        return f'a script whose first line names "{interpreter}", which is no program on this machine'
    return None


def _words(train: str) -> list[str]:
    try:
        # A home is found as in any path.
        return [from_home(word) for word in shlex.split(train)]
    except ValueError as error:
        raise UserError(f"train cannot be cut into words: {error}: {train}") from None


def command_of(train: str, one: Round, config: RunConfig) -> list[str]:
    """The words of the command for a round, whose run has that configuration."""
    places = {
        "model": str(config.instruct_model_path), "dataset": str(one.run / "dataset"),
        "exports": str(one.run / "exports"), "output": str(one.model), "round": str(one.number),
        "work_dir": str(one.run),
    }  # fmt: skip
    return [_PLACE.sub(lambda found: places[found[1]], word) for word in _words(train)]


def train(one: Round, words: Sequence[str], children: Children) -> None:
    """Train the model of a round on its pairs, by the words of a command.

    Raises TrainerError where the trainer fails, LoopStopped as Children.run.
    """
    # Behind what earlier starts of it said.
    start = one.log.stat().st_size if is_file(one.log) else 0
    code = children.run(words, one.log)
    if code:
        how = f"ended by {_signal(-code)}" if code < 0 else f"exit code {code}"
        last = "".join(f"\n  {line}" for line in _last_lines(one.log, start))
        said = f'Its output is in "{one.log}", which ends with:{last}' if last else "It said nothing"
        raise TrainerError(
            f"the trainer of round {one.number} failed ({how}): {shlex.join(words)}\n"
            f"{said}\nThe pairs of the round stay as they are. Mend what is wrong"
        )


def written(one: Round) -> set[tuple[Path, int]]:
    """What lies in {output}, by path and date."""
    return {(path, path.lstat().st_mtime_ns) for path in matching(one.model, "*")}


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def require_model(one: Round, following: RunConfig) -> None:
    """Raise UserError where the trainer left nothing that the round after it, `following`, could sample from."""
    try:
        with naming_flag(following, TRAINED):
            check_folder(folder_of(following, TRAINED), None)
    except ModelError as error:
        raise UserError(
            f'the trainer of round {one.number} ended with 0, and left no model in "{one.model}", which is {{output}}: '
            f"{str(error).partition(': ')[2]}"
        ) from None


def _last_lines(log: Path, start: int) -> list[str]:
    """Of what is behind the byte `start`."""
    with log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - 4000))
        # A progress bar is one line.
        lines = file.read().decode(errors="replace").split("\n")
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines if line.strip()][-NUM_LINES:]
