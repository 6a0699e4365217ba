"""`data-engine submit`: an array of SLURM jobs over shards, and the one that pairs when they are done. No torch here.

What a job does is in launch/slurm/*.sbatch. The pairing job waits for exit code 0 of every task (afterok), not for
their end alone (afterany), which would pair with what a failed task left out, and only be told that units are missing.
A task that was preempted or lost its node is put back under its own number, and has not ended for SLURM until it is
done. Where one failed for good, the pairing job can never start, and leaves the queue by itself.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from data_engine.commands import validate
from data_engine.commands.arguments import parse
from data_engine.config import RunConfig
from data_engine.errors import UserError

USAGE = 'usage: data-engine submit --array N [--sbatch "OPTIONS"] [--config FILE] [--name value ...]'
HELP = f"""{USAGE}

Submits N SLURM jobs that share out the questions, and one that pairs when all are done. Run it from the repository's
root; nothing is submitted where the configuration has a mistake.

  --array N               jobs among which sampling and scoring are shared out
  --sbatch "OPTIONS"      options of sbatch for all of them: "--partition gpu --gres gpu:8 --time 12:00:00"
  --sbatch_pair "OPTIONS" more of them for the pairing job, which needs one CPU and no GPU: "--gres none"

All else is as in data-engine run --help, which lists it."""
ARRAY, PAIR = Path("launch/slurm/array.sbatch"), Path("launch/slurm/pair.sbatch")
# What each of the jobs is told by its script.
_SET_HERE = ("num_shards", "shard_index", "continue_from_stage", "stop_after_stage")


def main(argv: Sequence[str]) -> int:
    """Check the configuration, submit both, print their ids. Raises UserError, with nothing left in the queue."""
    if {"-h", "--help"} & set(argv):
        print(HELP)
        return 0
    options, flags = split(argv)
    num_jobs = _number(options.get("array"))
    extra, extra_pair = (_words(name, options.get(name, "")) for name in ("sbatch", "sbatch_pair"))
    config = parse(flags, "submit")
    _check_place(config)
    print(validate.check(config), flush=True)

    logs = Path(config.work_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    # The jobs run under the interpreter that submits them, whatever is on the PATH of their nodes.
    common = ["--parsable", f"--export=ALL,PYTHON={sys.executable}"]
    array = [f"--array=0-{num_jobs - 1}", f"--output={logs}/slurm-%A_%a.out", *extra]
    array_id = _sbatch([*common, *array, str(ARRAY), *flags, "--num_shards", str(num_jobs)])
    try:
        wait = [f"--dependency=afterok:{array_id}", "--kill-on-invalid-dep=yes", f"--output={logs}/slurm-%j.out"]
        pair_id = _sbatch([*common, *wait, *extra, *extra_pair, str(PAIR), *flags])
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


def split(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options of `submit` by name, and the flags of `run`. Raises UserError for one without a value."""
    options: dict[str, str] = {}
    flags: list[str] = []
    rest = iter(argv)
    for argument in rest:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in ("array", "sbatch", "sbatch_pair"):
            flags.append(argument)
            continue
        # By hand, since argparse takes a value such as --exclusive for a flag.
        options[name] = value if equals else next(rest, None)
        if options[name] is None:
            raise UserError(f"--{name} needs a value; {USAGE}")
    return options, flags


def _number(text: str | None) -> int:
    if text is None:
        raise UserError(f"missing: --array; {USAGE}")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f'array must be a whole number of jobs, at least 1, got "{text}"')
    return int(text)


def _words(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{name} cannot be cut into options: {error}: {text}") from None


def _check_place(config: RunConfig) -> None:
    defaults = {field.name: field.default for field in fields(RunConfig)}
    for name in _SET_HERE:
        if getattr(config, name) != defaults[name]:
            raise UserError(f"submit runs all stages and sets {name} itself, for each job: leave {name} out")
    if not (ARRAY.is_file() and PAIR.is_file()):
        raise UserError(f'no {ARRAY} in "{Path.cwd()}": submit from the root of the repository')
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine: submit from a login node of a SLURM cluster")


def _sbatch(arguments: list[str]) -> str:
    """The id of a job that is in the queue now. Raises UserError with SLURM's reason."""
    done = subprocess.run(["sbatch", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"SLURM refused the job, and nothing is left in the queue: {done.stderr.strip()}")
    # A cluster's name may follow.
    return done.stdout.strip().partition(";")[0]
