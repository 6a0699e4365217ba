"""One rank of a measurement, `python -m data_engine.planning.timed`: computes units as a run would, and times them.

It makes the plan of a run in a work directory of its own, loads each model in turn, and computes units of the size
that the run has, at places spread over the dataset. Where a whole unit would take too long, parts of one are timed, and
the line through their times tells a whole one. A line of JSON is written for each step; the last one has the result.
"""

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from data_engine import stages
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job.last_step import pair_all
from data_engine.job.model_holder import ModelHolder
from data_engine.job.plan import Plan
from data_engine.models.sharding.coordination import Independent
from data_engine.processes import ending
from data_engine.processes.ranks import Ranks, num_threads, set_threads
from data_engine.questions.image_workers import ImageWorkers
from data_engine.stages import Stage
from data_engine.store import units
from data_engine.store.folders import scratch_folder
from data_engine.store.made_from import made_from, read_unit

# Of the time that there is, the part of the stage that draws answers.
SAMPLING_SHARE = 0.5
# Whole units of a stage that are timed at most, and parts of one.
MOST_WHOLE = 6


class Spent(NamedTuple):
    """Seconds by the clock, and of the processors, which work of other programs does not lengthen."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Spent":
        return cls(time.perf_counter(), time.process_time())

    def until(self, end: "Spent") -> "Spent":
        return Spent(end.wall - self.wall, end.cpu - self.cpu)


class Timed:
    """What a rank measures."""

    def __init__(self, config: RunConfig, ranks: Ranks, budget_s: float) -> None:
        started = Spent.now()
        self.budget_s = budget_s
        self.plan = Plan.of(config, ranks)
        if self.plan.placement.split:
            raise UserError("a model that is split over ranks is not measured: its ranks move together")
        self.plan_s = started.until(Spent.now())
        self.images = ImageWorkers()
        self.held = ModelHolder(self.plan, self.images)
        whole = self.plan.unit_rows
        self.size = max(map(len, whole))
        # Spread over the dataset; the middle first.
        order = sorted(range(len(whole)), key=lambda at: (len(whole[at]) < self.size, at * 7919 % len(whole)))
        self.whole = [whole[at] for at in order]
        self.rows: list[range] = []

    def add(self, rows: range) -> int:
        """The number of a further unit, of these rows."""
        self.rows.append(rows)
        self.plan = dataclasses.replace(self.plan, unit_rows=list(self.rows), mine=range(len(self.rows)))
        self.held.plan = self.plan
        return len(self.rows) - 1

    def all_stages(self) -> dict[str, object]:
        """Times of every stage, and of the last step."""
        config, found = self.plan.config, {}
        # As a run: a model that is held is not loaded for its next role.
        todo = self.held.ordered(self.plan.stages.between(stages.SAMPLE, max(config.stop_after_stage, stages.SAMPLE)))
        loads: dict[str, Spent] = {}
        with self.images:
            self.images.start()
            for at, stage in enumerate(todo):
                tell(step=stage.name)
                share = SAMPLING_SHARE if at == 0 else (1 - SAMPLING_SHARE) / max(1, len(todo) - 1)
                found[stage.name] = self.one_stage(stage, share * self.budget_s, loads, first=at == 0)
            self.held.release()
        last = {}
        if config.stop_after_stage == stages.PAIR:
            tell(step="pairs")
            last = self.last_step(todo)
        return {"stages": found, "loads": loads, "plan_s": self.plan_s, "last": last, "size": self.size}

    def one_stage(self, stage: Stage, budget_s: float, loads: dict[str, Spent], first: bool) -> dict:
        """Load its model, warm up on one question, and time units until the time is spent."""
        start = Spent.now()
        role = stage.model or ""
        before = self.held.role
        runner = self.held.runner(stage, Independent())
        if role and before != role:
            loads[role] = start.until(Spent.now())
        if first:
            # Twice the same question: what only the first one pays is no part of the rate.
            warm = self.whole[0][:1]
            self.compute(stage, self.add(warm), runner)
            times = [self.compute(stage, self.add(warm), runner)]
            self._sample(stage, runner, times, budget_s)
        else:
            times, ends = [], time.perf_counter() + budget_s
            self.compute(stage, 0, runner)
            for number in range(1, len(self.rows)):
                # One of the largest kind at least, or what lies behind would be a guess.
                if time.perf_counter() > ends and any(len(self.rows[n]) == self.size for n in range(1, number)):
                    break
                times.append(self.compute(stage, number, runner))
        done = self.rows[1 : 1 + len(times)]
        sizes = [len(rows) for rows in done]
        return {"times": list(zip(sizes, times, strict=True)), "role": role, **self._written(stage, len(times))}

    def _sample(self, stage: Stage, runner, times: list[Spent], budget_s: float) -> None:
        """Whole units where one fits the time, as one question tells; parts of it otherwise."""
        left = lambda: budget_s - sum(one.wall for one in times)  # noqa: E731
        whole = iter(self.whole)
        a_question = times[0].wall
        if a_question * self.size > left() and self.size > 1:
            # Answers beside each other cost less than one after the other: a part tells how much less.
            part = max(1, min(self.size // 2, int(left() / 3 / a_question)))
            for count in (part, min(self.size, 2 * part)):
                rows = self.whole[0][:count]
                times.append(self.compute(stage, self.add(rows), runner))
            a_question = times[-1].wall / len(self.rows[-1])
            if a_question * self.size > left():
                return
        for rows in whole:
            times.append(self.compute(stage, self.add(rows), runner))
            if len(times) > MOST_WHOLE or times[-1].wall > left():
                return

    def compute(self, stage: Stage, unit: int, runner) -> Spent:
        """Compute and publish a unit."""
        plan, start = self.plan, Spent.now()
        work = plan.unit_work(stage, unit)
        runner.submit(work)
        while not (finished := runner.poll()):
            pass
        [(_, result)] = finished
        units.publish_result(plan.work_dir, stage.name, unit, result, made_from(stage, plan.bound, work.inputs))
        spent = start.until(Spent.now())
        tell(unit=unit, seconds=spent.wall)
        return spent

    def _written(self, stage: Stage, count: int) -> dict:
        """Tokens and bytes of an answer, by the timed units."""
        answers = tokens = size = 0
        for unit in range(1, 1 + count):
            path = units.unit_path(self.plan.work_dir, stage.name, unit)
            table = read_unit(self.plan.work_dir, stage, unit, self.plan.bound).table
            answers, size = answers + table.num_rows, size + path.stat().st_size
            if "token_ids" in table.column_names:
                tokens += sum(len(ids or ()) for ids in table["token_ids"].to_pylist())
        mean = tokens / answers if answers and tokens else None
        return {"tokens_an_answer": mean, "bytes_an_answer": size / answers if answers else 0.0}

    def last_step(self, todo: list[Stage]) -> dict:
        """Seconds of pairing and report: as a whole for these units, and what each further question adds."""
        ready = sorted(set.intersection(*(units.published(self.plan.work_dir, stage.name) for stage in todo)))
        # Questions that were asked before would be there twice.
        seen, kept = set(), []
        for unit in reversed(ready):
            if not seen.intersection(self.rows[unit]):
                seen.update(self.rows[unit])
                kept.append(unit)
        first = self._pair(kept, todo, "all")
        again, one = self._pair(kept, todo, "again"), self._pair(kept[:1], todo, "one")
        further = len(seen) - len(self.rows[kept[0]])
        # A few hundredths of a second: the processors' clock tells them, that on the wall tells who else works.
        a_question = max(0.0, (again.cpu - one.cpu) / further) if further else 0.0
        slower = first.wall / max(first.cpu, 1e-9)
        return {"seconds": first, "questions": len(seen), "a_question": Spent(a_question * slower, a_question)}

    def _pair(self, numbers: list[int], todo: list[Stage], name: str) -> Spent:
        """Pair these units alone, in a folder of their own."""
        folder = self.plan.work_dir.parent / name
        for at, number in enumerate(numbers):
            for stage in todo:
                (folder / stage.name).mkdir(parents=True, exist_ok=True)
                source = units.unit_path(self.plan.work_dir, stage.name, number)
                os.link(source, units.unit_path(folder, stage.name, at))
        shutil.copy(self.plan.work_dir / "run.json", folder)
        rows = [self.rows[number] for number in numbers]
        config = dataclasses.replace(self.plan.config, work_dir=str(folder))
        plan = dataclasses.replace(self.plan, config=config, work_dir=folder, unit_rows=rows, mine=range(len(rows)))
        start = Spent.now()
        with contextlib.redirect_stdout(sys.stderr), scratch_folder(folder, "pairing") as scratch:
            pair_all(plan, scratch)
        return start.until(Spent.now())


def tell(**line: object) -> None:
    print(json.dumps(line), flush=True)


@contextlib.contextmanager
def _telling_mistakes() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        tell(error=str(error))
        sys.exit(2)


def main() -> None:
    """The request is a line of JSON on standard input."""
    request = json.load(sys.stdin)
    imported = Spent(time.time() - request["started"], time.process_time())
    config = RunConfig(**request["config"])
    world = request["world_size"]
    ranks = Ranks(request["rank"], world, request["rank"], world)
    with _telling_mistakes():
        set_threads(config.threads, ranks)
        tell(step="the questions and checkpoints")
        found = Timed(config, ranks, request["budget_s"]).all_stages()
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    workers_s = Spent(0.0, workers.ru_utime + workers.ru_stime)
    tell(result={**found, "import_s": imported, "workers_s": workers_s, "threads": num_threads(config.threads, ranks)})


if __name__ == "__main__":
    main()
    ending.without_collection()
