"""`data-engine submit`: an array of SLURM jobs over shards, and one job that pairs when they are done. No torch here.

What a job does is in launch/slurm/*.sbatch. The pairing job waits for exit code 0 of every task (afterok): after a
failed task (afterany) it would only find that units are missing. SLURM puts a task that was preempted or lost its node
back under its own number, so that it has not ended until it is done. Where a task failed for good, the pairing job can
never start, and SLURM removes it from the queue.
"""

import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_engine.commands import validate
from data_engine.commands.arguments import own_number, own_options, read
from data_engine.commands.examples import shown
from data_engine.config import RunConfig
from data_engine.errors import Collected, UserError
from data_engine.flags import DEFAULTS
from data_engine.planning.checks import require_all
from data_engine.planning.plan import empty_shards
from data_engine.processes import output
from data_engine.processes.launch import launch_folder

USAGE = 'usage: data-engine submit --array N [--sbatch "OPTIONS"] [--config FILE] [--name value ...]'
HELP = f"""{USAGE}

Submits N SLURM jobs that share the questions, and one that pairs when all are done. Relative paths are those of the
current folder; nothing is submitted where the configuration has a mistake.

  --array N               jobs that share sampling and scoring
  --sbatch "OPTIONS"      options of sbatch for all of them: "--partition gpu --gres gpu:8 --time 12:00:00"
  --sbatch_pair "OPTIONS" more of them for the pairing job, which needs one CPU and no GPU: "--gres none"

All else is as in data-engine run --help, which lists it."""
# Options of sbatch that all jobs get from here, those that the pairing job does, and the letters of some.
_SET_FOR_ALL = ("array", "export", "export-file", "output", "parsable", "wrap")
_SET_FOR_PAIRS = (*_SET_FOR_ALL, "dependency")
_LETTERS = {"array": "a", "output": "o", "dependency": "d", "time": "t"}
# Of --time: launch/slurm/*.sbatch ask for the signal so long before its end.
STOP_BEFORE_S = 120
LEAST_TIME_S = {"sbatch": 600, "sbatch_pair": 300}
NEED_TIME = {"sbatch": "and need minutes to load a model", "sbatch_pair": "and a pairing that was stopped starts anew"}
# Flags that the scripts set for each job.
_SET_HERE = ("num_shards", "shard_index", "continue_from_stage", "stop_after_stage")


def main(argv: Sequence[str]) -> int:
    """Check the configuration, submit both jobs, print their ids. Raises UserError, with nothing left in the queue."""
    if {"-h", "--help"} & set(argv):
        print(f"{HELP}\n\nThe scripts are in {sbatch_folder()}.\n\n{shown('submit')}")
        return 0
    options, flags = own_options(argv, "submit", USAGE)
    draft, problems = read(flags, "submit"), Collected()
    config = draft.config
    for check in (lambda: _num_jobs(options), lambda: _words(options), lambda: _check_can_submit(config)):
        with problems.noting():
            check()
    # A login node may have no GPU, and the jobs one.
    here = replace(config, device="auto") if config.device.startswith("cuda") else config
    found = require_all(draft._replace(config=here, problems=[*problems.found, *draft.problems]))
    num_jobs, (extra, extra_pair) = _num_jobs(options), _words(options)
    output.warn([*found.warnings, *filter(None, [empty_shards(found, num_jobs)])])
    print(validate.describe(found), flush=True)

    logs = Path(config.work_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    # sbatch puts numbers in the place of %j and the like.
    to = str(logs).replace("%", "%%")
    launch = sbatch_folder()
    # The jobs run under this interpreter, whatever is on the PATH of their nodes.
    common = ["--parsable", f"--export=ALL,PYTHON={sys.executable},DATA_ENGINE_LAUNCH={launch}"]
    array = [f"--array=0-{num_jobs - 1}", f"--output={to}/slurm-%A_%a.out", *extra]
    array_id = _sbatch([*common, *array, str(launch / "slurm/array.sbatch"), *flags, "--num_shards", str(num_jobs)])
    try:
        # Behind the others, since the last one counts: what the tasks wait for, this job waits for with them.
        wait = [f"--dependency=afterok:{array_id}", "--kill-on-invalid-dep=yes", f"--output={to}/slurm-%j.out"]
        pair_id = _sbatch([*common, *extra, *extra_pair, *wait, str(launch / "slurm/pair.sbatch"), *flags])
    except BaseException:
        subprocess.run(["scancel", array_id], check=False)
        raise
    print(
        f"array job {array_id}: {num_jobs} tasks\n"
        f"pairing job {pair_id}: starts when every task has ended with exit code 0\n"
        f"follow them: data-engine status {shlex.quote(config.work_dir)}\n"
        f"             squeue --jobs {array_id},{pair_id}\n"
        f"their output: {logs}/slurm-*.out",
        flush=True,
    )
    return 0


def sbatch_folder() -> Path:
    """The folder of the scripts. Raises UserError where it is missing, or SLURM could not be given its name."""
    found = launch_folder()
    if "," in str(found):
        raise UserError(f'"{found}" has a comma in its name, at which sbatch would cut it: install somewhere else')
    return found


def _num_jobs(options: Mapping[str, str]) -> int:
    return own_number(options, "array", USAGE, "a whole number of jobs")


def _words(options: Mapping[str, str]) -> list[list[str]]:
    """Options of sbatch for all jobs, and those for the pairing job."""
    found, problems = [], Collected()
    for name in ("sbatch", "sbatch_pair"):
        text = options.get(name, "")
        try:
            found.append(shlex.split(text))
        except ValueError as error:
            problems.note(UserError(f"{name} cannot be cut into options: {error}: {text}"))
            continue
        for word in found[-1]:
            options_set = _SET_FOR_ALL if name == "sbatch" else _SET_FOR_PAIRS
            # One alone: --export is the beginning of --export-file, too.
            if option := next((option for option in options_set if _is_option(word, option)), None):
                problems.note(UserError(f"{name} has --{option}, which submit sets itself: leave it out"))
        with problems.noting():
            _check_time(name, found[-1])
    problems.raise_any()
    return found


def _is_option(word: str, option: str) -> bool:
    """Whether it gives sbatch that option: whole, cut short, or by its letter."""
    if word.startswith("--"):
        given = word[2:].partition("=")[0]
        return bool(given) and option.startswith(given)
    letter = _LETTERS.get(option)
    return letter is not None and word.startswith(f"-{letter}")


def _check_time(name: str, words: Sequence[str]) -> None:
    """Raise UserError for a --time that leaves none: jobs stop STOP_BEFORE_S before it, and would go back for ever."""
    least_s = LEAST_TIME_S[name]
    for word, following in itertools.pairwise([*words, ""]):
        if _is_option(word, "time"):
            value = (word.partition("=")[2] if word.startswith("--") else word[2:]) or following
            limit_s = _seconds(value)
            if limit_s is not None and 0 < limit_s < least_s:
                raise UserError(
                    f"{name} has --time {value}: jobs stop {STOP_BEFORE_S} s before their limit, {NEED_TIME[name]}; "
                    f"give {least_s // 60} minutes at least"
                )


def _seconds(time: str) -> int | None:
    """What SLURM takes a time for: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S. None for what is no time."""
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in (*parts, days or "0")) or len(parts) > 3:
        return None
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(int(part) * unit for part, unit in zip(parts, units, strict=False))


def _check_can_submit(config: RunConfig) -> None:
    for name in _SET_HERE:
        if getattr(config, name) != DEFAULTS[name]:
            raise UserError(f"submit runs all stages and sets {name} itself, for each job: leave {name} out")
    # None where it is missing, which is told beside this.
    if "\\" in os.path.abspath(config.work_dir or ""):
        raise UserError(f'work_dir "{config.work_dir}" has a backslash in its name, which SLURM takes for another sign')
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine: submit from a login node of a SLURM cluster")


def _sbatch(arguments: list[str]) -> str:
    """Submit a job and return its id. Raises UserError with SLURM's reason."""
    done = subprocess.run(["sbatch", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"SLURM refused the job, and nothing is left in the queue: {done.stderr.strip()}")
    # The cluster's name may follow the id.
    return done.stdout.strip().partition(";")[0]
