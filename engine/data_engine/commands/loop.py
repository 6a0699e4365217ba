"""`data-engine loop`: rounds of sampling, rewarding, pairing and training, each with the model of the one before.

The rounds are in rounds/; here are the flags, and what is checked before the first of them. No torch here.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from data_engine.commands.arguments import own_number, own_options, read
from data_engine.commands.examples import shown
from data_engine.commands.work_dir import told_of_disk
from data_engine.config import RunConfig
from data_engine.errors import Collected, UserError
from data_engine.exit_codes import STOPPED
from data_engine.flags import DEFAULTS
from data_engine.models.checkpoints.places import resolve
from data_engine.models.roles import naming_flag
from data_engine.planning.own_folders import check_writable
from data_engine.processes.ranks import asked_machines
from data_engine.questions.of_run import open_for_run
from data_engine.rounds.places import MODEL, ROUND, Round, config_of
from data_engine.rounds.training import PLACES, check_command, require_program
from data_engine.rounds.work import work
from data_engine.stages import model_flags
from data_engine.store import disk
from data_engine.store.absent import is_file

log = logging.getLogger(__name__)

USAGE = "usage: data-engine loop --rounds N --train 'COMMAND' [--config FILE] [--name value ...]"
_PLACES = "\n".join(f"    {{{name}}}".ljust(17) + told for name, told in PLACES.items())
HELP = f"""{USAGE}

A round samples answers from a model, rewards and pairs them as data-engine run does, and starts a trainer on the pairs;
the next round samples from what that wrote. What is done is not done again: run the same command to go on.

  --rounds N         how many rounds; more of them later go on behind those that are done
  --train 'COMMAND'  what trains, without a shell; in it stand

{_PLACES}

In values of the other flags, {MODEL} is the model of the round, and {ROUND} its number. Everything is written under
--work_dir: round-N/run is the work_dir of a round, round-N/model what its trainer wrote, index.html the course of the
rewards. NUM_PROCESSES and the like are as for launch/run_engine.sh, which runs each round.

All else is as in data-engine run --help, which lists it."""
# Flags of a part of a run: a round is a whole one.
_WHOLE = ("continue_from_stage", "stop_after_stage", "num_shards", "shard_index")


def main(argv: Sequence[str]) -> int:
    """Do all rounds and return an exit code. Raises UserError for what is wrong, before anything is done."""
    if {"-h", "--help"} & set(argv):
        print(f"{HELP}\n\n{shown('loop')}")
        return 0
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s loop: %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    asked = read_loop(argv)
    require_program(asked.train)
    _check_machines()
    _check_rounds(asked.config, asked.num_rounds)
    work_dir = Path(asked.config.work_dir)
    check_writable(work_dir)
    with told_of_disk(work_dir):
        try:
            return work(*asked)
        except OSError as error:
            if not disk.is_trouble(error):
                raise
            log.warning("%s", disk.describe(error, work_dir, asked.config.stages))
            return STOPPED


class Asked(NamedTuple):
    """What a command line asks for."""

    config: RunConfig
    """of all rounds: places are not filled in"""
    num_rounds: int
    train: str


def read_loop(argv: Sequence[str]) -> Asked:
    """Raises UserError for what is wrong with a command line, UserErrors where that is more than one thing."""
    options, flags = own_options(argv, "loop", USAGE)
    train = options.get("train")
    draft, problems = read(flags, "loop"), Collected()
    num_rounds = 0
    with problems.noting():
        num_rounds = own_number(options, "rounds", USAGE)
    with problems.noting():
        if train is None:
            raise UserError(f"missing: --train; {USAGE}")
        check_command(train, draft.config.export is not None)
    for check in (_check_whole, _check_answers, _check_itself):
        with problems.noting():
            check(draft.config)
    for problem in draft.problems:
        problems.note(problem)
    problems.raise_any()
    return Asked(draft.config, num_rounds, train)


def _check_rounds(loop: RunConfig, num_rounds: int) -> None:
    """What later rounds alone read must be there by now: a loop may come to them in days."""
    named = {name for name, value in asdict(loop).items() if name != "work_dir" and ROUND in str(value)}
    problems = Collected()
    for number in range(2, num_rounds + 1) if named else ():
        one = Round(Path(loop.work_dir), number)
        if one.is_done:
            continue
        config = config_of(loop, one)
        # With the pictures, and the files of templates.
        with problems.noting():
            open_for_run(config)
        for role in config.roles:
            path_flag, _, revision_flag, _ = model_flags(role)
            # What rounds train is not there yet.
            is_trained = MODEL in (getattr(loop, path_flag) or MODEL)
            if not is_trained and not named.isdisjoint((path_flag, revision_flag)):
                with problems.noting(), naming_flag(config, role):
                    resolve(getattr(config, path_flag), getattr(config, revision_flag))
    problems.raise_any()


def _check_whole(config: RunConfig) -> None:
    for name in _WHOLE:
        if getattr(config, name) != DEFAULTS[name]:
            raise UserError(f"loop runs all stages of all questions in each round: leave {name} out")


def _check_answers(config: RunConfig) -> None:
    if config.answers is not None:
        raise UserError("answers cannot be given to a loop, whose rounds sample from the model that they train")


def _check_itself(config: RunConfig) -> None:
    for sign in (MODEL, ROUND):
        if sign in (config.instruct_model_path or ""):
            raise UserError(f"instruct_model_path is the model of the first round, and cannot have {sign}")
    if config.work_dir and is_file(Path(config.work_dir) / "run.json"):
        among = any(Path(config.work_dir).glob("round-*/config.yaml"))
        mend = (
            "move its run.json away, and the loop goes on" if among else "choose another one, for the rounds of a loop"
        )
        raise UserError(f'work_dir "{config.work_dir}" holds a run{" beside rounds" if among else ""}: {mend}')
    if config.reward_model_path == MODEL and config.reference_model_path is None:
        raise UserError(
            f"reward_model_path is {MODEL}, so that each model rewards its own answers: name the model before DPO by "
            "reference_model_path, or every reward of the first round is 0"
        )


def _check_machines() -> None:
    if asked_machines() > 1:
        raise UserError("NUM_MACHINES is set: a loop starts its runs and its trainer on one machine")
