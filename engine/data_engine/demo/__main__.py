"""`python -m data_engine.demo questions OUT.parquet --num N --seed S`, `judge WORK_DIR QUESTIONS`, `areas` likewise."""

import argparse
import sys
from pathlib import Path

from data_engine.demo.areas import print_areas
from data_engine.demo.judge import judge_run, write_questions
from data_engine.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 1 where the chosen answers are not clearly better, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m data_engine.demo", description="The tiny world of the demo.")
    commands = parser.add_subparsers(dest="command", required=True)
    questions = commands.add_parser("questions", help="write pictures and questions, and the truth beside them")
    questions.add_argument("out", type=Path)
    questions.add_argument("--num", type=int, default=200)
    questions.add_argument("--seed", type=int, default=0)
    judge = commands.add_parser("judge", help="hold a run's pairs against the truth")
    judge.add_argument("work_dir", type=Path)
    judge.add_argument("questions", type=Path)
    areas = commands.add_parser("areas", help="how well each source of reward tells true answers from false ones")
    areas.add_argument("work_dir", type=Path)
    areas.add_argument("questions", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.command == "questions":
            write_questions(given.out, given.num, given.seed)
            print(f"{given.num} questions written to {given.out}")
            return 0
        if given.command == "areas":
            print_areas(given.work_dir, given.questions)
            return 0
        return 0 if judge_run(given.work_dir, given.questions) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
