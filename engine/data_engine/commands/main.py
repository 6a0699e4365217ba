"""The only entry point: `data-engine COMMAND ...`, or `python -m data_engine`. Imports no torch by itself.

What a command raises becomes an exit code here: see exit_codes.py.
"""

import atexit
import sys
import traceback
from collections.abc import Sequence

import data_engine
from data_engine.errors import IncompleteError, LostRankError, TrainerError, UserError, UserErrors, apart, nearest
from data_engine.exit_codes import FAILED, INCOMPLETE, STOPPED, WRONG_INPUT
from data_engine.processes import ending, home, output, process_limit, signals
from data_engine.tables import load

# Name: (module:function that takes the remaining arguments and returns an exit code, help).
COMMANDS = {
    "run": ("data_engine.commands.run:main", "sample, score and pair, or go on where a run was stopped"),
    "validate": (
        "data_engine.commands.validate:main",
        "check configuration, paths and columns, as run would be given them",
    ),
    "submit": ("data_engine.commands.submit:main", "divide a run among SLURM jobs, and pair when they are done"),
    "status": (
        "data_engine.commands.status:main",
        "units done by stage, pace and time left of a work_dir; --watch keeps showing them",
    ),
    "pairs": ("data_engine.commands.pairs:main", "pair the answers of a work_dir anew, by other rewards or strategies"),
    "export": ("data_engine.commands.export:main", "write the pairs of a work_dir as datasets for trainers"),
    "loop": (
        "data_engine.commands.loop:main",
        "rounds of answers, pairs and training, each with the model of the one before",
    ),
    "report": ("data_engine.commands.report:main", "write report/index.html of a work_dir again"),
    "bench": ("data_engine.commands.bench:main", "the engine's speed against stock transformers, on this machine"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors go to stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with process_limit.naming():
            return _dispatch(argv)
    except UserError as error:
        return _complain_of_all(error)
    except IncompleteError as error:
        return _complain(str(error), INCOMPLETE)
    except (LostRankError, TrainerError) as error:
        return _complain(f"{error}; run the same command again to go on", FAILED)
    except KeyboardInterrupt:
        return _complain(signals.INTERRUPTED, STOPPED)
    except Exception as error:
        # So tempfile says it; torch asks for the folder as soon as it is imported.
        if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
            return _complain(
                "no folder takes temporary files: set TMPDIR to one that can be written and has room", WRONG_INPUT
            )
        traceback.print_exc()
        return FAILED


def entry() -> int:
    """The console script: `main`, whatever the locale is, and whoever reads the output."""
    output.use_utf8()
    output.protect()
    home.ensure()
    # The first process of a container gets no signal that it has no handler for.
    signals.interrupt_by_signals()
    # Before anybody else registers: what is registered first runs last.
    atexit.register(signals.ignore)
    try:
        code = main()
        why = output.why_lost(sys.stdout)
        if why is not None:
            _complain(f"standard output cannot be written: {why}", WRONG_INPUT)
            # A run has its result in its work_dir, and its exit code tells of that.
            code = code if sys.argv[1:2] == ["run"] else code or WRONG_INPUT
        signals.end_with(code)
        return code
    finally:
        ending.without_collection()


def _dispatch(argv: list[str]) -> int:
    if not argv:
        raise UserError(f"which command? {_usage()}")
    command, *rest = argv
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(f"{_usage()}\n\n" + "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()))
        print("\ndata-engine COMMAND --help says more.")
        return 0
    if command == "--version":
        print(f"data-engine {data_engine.__version__}")
        return 0
    if command not in COMMANDS:
        raise UserError(f'unknown command "{command}"{nearest(command, COMMANDS) or f"; {_usage()}"}')
    with signals.leaving_at_once():
        function = load(COMMANDS[command][0])
    return function(rest)


def _usage() -> str:
    return f"usage: data-engine {{{','.join(COMMANDS)}}} ..."


def _complain_of_all(error: UserError) -> int:
    """Each mistake on a line of its own, and how many there are, and what was done, where that is more than one."""
    for one in apart(error):
        output.tell(one)
    if isinstance(error, UserErrors):
        print(f"data-engine: {len(error.found)} mistakes; {error.outcome}", file=sys.stderr, flush=True)
    return WRONG_INPUT


def _complain(message: str, code: int) -> int:
    output.complain(message)
    return code


if __name__ == "__main__":
    sys.exit(entry())
