"""What the commands about a finished or running work_dir share: their one argument, and its run.json. No torch."""

import json
from collections.abc import Sequence
from pathlib import Path

from data_engine.errors import UserError


def work_dir_argument(command: str, description: str, argv: Sequence[str], options: str = "") -> Path | None:
    """The one argument of a command about a work_dir; None after --help, which is printed here."""
    usage = f"usage: data-engine {command} WORK_DIR{options}"
    if list(argv) in (["-h"], ["--help"]):
        print(f"{usage}\n\n{description}")
        return None
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError(f'{command} takes one WORK_DIR, got "{" ".join(argv)}"; {usage}')
    return Path(argv[0])


def take_option(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of --NAME VALUE or --NAME=VALUE, None where it is not given, and the other arguments."""
    rest = list(argv)
    for at, word in enumerate(rest):
        flag, equals, value = word.partition("=")
        if flag == f"--{name}":
            if not equals and at + 1 == len(rest):
                raise UserError(f"--{name} needs a value")
            return (value, rest[:at] + rest[at + 1 :]) if equals else (rest[at + 1], rest[:at] + rest[at + 2 :])
    return None, rest


def read_run(work_dir: Path) -> dict:
    """run.json of a work_dir. Raises UserError where the folder is none."""
    if not work_dir.is_dir():
        raise UserError(f'no folder "{work_dir}"')
    try:
        return dict(json.loads((work_dir / "run.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f'"{work_dir}" is not the work_dir of a run: it has no run.json') from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f'"{work_dir}/run.json" is not one of a run: {type(error).__name__}: {error}') from None
