"""Stands in for the command line: the real engine by the path of a GPU, on CPU with the kernels' eager formula.

One queue goes through all units, a step has all rows, and tokens are read late. Answers are scored with another unit in
hand. Where $ONE_QUEUE_LOG is set, a line is
written to it for each unit that is begun while others are in hand. Each rank gets a unit: see together.py.
"""

import os
import sys

from together import share_out

from data_engine.commands import main
from data_engine.job import worker
from data_engine.pipeline import passes
from data_engine.sampling.native import backend, scheduler


def take_the_path_of_a_gpu() -> None:
    init, submit, log = scheduler.SamplingEngine.__init__, worker.Worker._submit, os.environ.get("ONE_QUEUE_LOG")

    def late(engine: scheduler.SamplingEngine, *arguments: object) -> None:
        init(engine, *arguments)
        engine.lag = 1

    def noted(loop: worker.Worker, stage: object, unit: int, runner: object) -> None:
        if log and loop.made_from:
            with open(log, "a") as file:
                file.write(f"{os.environ.get('RANK', '0')} {unit}\n")
        submit(loop, stage, unit, runner)

    def goes_on(runner: passes.AnswerRunner, *arguments: object, made=passes.AnswerRunner.__init__, **options) -> None:
        made(runner, *arguments, **options)
        runner._lag, runner._goes_on = 1, True

    backend.uses_kernels = lambda model: True
    passes.AnswerRunner.__init__ = goes_on
    scheduler.SamplingEngine.__init__, worker.Worker._submit = late, noted


if __name__ == "__main__":
    if "run" in sys.argv[1:2]:
        take_the_path_of_a_gpu()
        share_out()
    sys.exit(main.main())
