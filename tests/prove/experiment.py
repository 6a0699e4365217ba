"""The proof as tasks: for each seed pictures, a run of the engine, the arms' datasets, trainings and verdicts.

OUT/model                      the demo's instruct model in transformers' layout
OUT/seed-S/k-K/                questions.parquet, work/ and exports/ of a run with K answers a question
OUT/seed-S/k-K/data-N/ARM/     the arms' datasets of N pairs
OUT/seed-S/trained/NAME/       what TRL made of one
OUT/seed-S/judged/NAME.json    and how much it hallucinates
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from figures import BASELINE
from tasks import Task

import data_engine.demo

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
CHECKPOINTS = Path(data_engine.demo.__file__).parent / "checkpoints"
ENGINE = "engine"
ARMS = (ENGINE, "random", "reversed", "length", "sft", "oracle", "contrast", "sft_random")
# Judged beside the arms, as it is.
REWARD_MODEL = "reward model"


@dataclass(frozen=True)
class Plan:
    """What is run. `settings` were chosen on the seeds of settings.yaml, which are none of these."""

    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    num_pairs: int
    num_pictures: int
    curve_seeds: tuple[int, ...] = ()
    curve_pairs: tuple[int, ...] = ()
    curve_ks: tuple[int, ...] = ()
    k: int = 10

    def num_questions(self, k: int) -> int:
        """So many that each arm finds its pairs: some questions have none, of few answers more of them."""
        return round((1.3 if k >= 5 else 1.6) * self.num_pairs)


FULL = Plan(
    seeds=(1, 2, 3, 4, 5), arms=ARMS, num_pairs=2000, num_pictures=2000,
    curve_seeds=(1, 2), curve_pairs=(250, 500, 1000), curve_ks=(2, 5, 10, 20),
)  # fmt: skip
QUICK = Plan(seeds=(1, 2), arms=(ENGINE, "random", "oracle", "shuffled"), num_pairs=1000, num_pictures=600)


def settings() -> dict:
    """How TRL trains: the hyperparameters, and on which seeds they were chosen."""
    return yaml.safe_load((HERE / "settings.yaml").read_text())


@dataclass(frozen=True)
class Folders:
    """Where the parts of the proof lie."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    def run(self, seed: int, k: int) -> Path:
        return self.root / f"seed-{seed}" / f"k-{k}"

    def data(self, seed: int, k: int, num_pairs: int) -> Path:
        return self.root / f"seed-{seed}" / f"k-{k}-pairs-{num_pairs}"

    def trained(self, seed: int, name: str) -> Path:
        return self.root / f"seed-{seed}" / "trained" / name

    def areas(self, seed: int) -> Path:
        return self.root / f"seed-{seed}" / "areas.json"

    def judged(self, seed: int, name: str) -> Path:
        return self.root / f"seed-{seed}" / "judged" / f"{name}.json"


@dataclass(frozen=True)
class Training:
    """One model trained: on which arm's pairs of which run."""

    seed: int
    arm: str
    k: int
    num_pairs: int

    def name(self, plan: Plan) -> str:
        """That of the arm where all else is as for the arms."""
        usual = (self.k, self.num_pairs) == (plan.k, plan.num_pairs)
        return self.arm if usual else f"{self.arm}-k-{self.k}-pairs-{self.num_pairs}"


def trainings(plan: Plan) -> list[Training]:
    """All of them, arms first."""
    arms = [Training(seed, arm, plan.k, plan.num_pairs) for seed in plan.seeds for arm in plan.arms]
    return list(dict.fromkeys([*arms, *curve_over_pairs(plan), *curve_over_k(plan)]))


def curve_over_pairs(plan: Plan) -> list[Training]:
    """The engine's pairs, fewer and fewer of them."""
    numbers = (*plan.curve_pairs, plan.num_pairs)
    return [Training(seed, ENGINE, plan.k, num) for seed in plan.curve_seeds for num in numbers]


def curve_over_k(plan: Plan) -> list[Training]:
    """As many pairs, of more and more answers, by two strategies."""
    return [
        Training(seed, arm, k, plan.num_pairs)
        for seed in plan.curve_seeds
        for k in plan.curve_ks
        for arm in (ENGINE, "mu_2sigma")
        if arm == ENGINE or k >= 10
    ]


def tasks(plan: Plan, root: Path) -> Iterator[Task]:
    """All tasks, in the order in which they are best begun."""
    folders = Folders(root)
    yield Task(folders.model, lambda out: [(str(HERE / "checkpoint.py"), str(CHECKPOINTS / "instruct"), str(out))])
    everything = trainings(plan)
    for seed in plan.seeds:
        yield _judging(folders, plan, seed, BASELINE, folders.model)
        yield _judging(folders, plan, seed, REWARD_MODEL, CHECKPOINTS / "reward")
        own = [one for one in everything if one.seed == seed]
        for k in dict.fromkeys(one.k for one in own):
            arms = [one.arm for one in own if one.k == k]
            yield _engine_run(folders, plan, seed, k, arms)
            if "contrast" in arms:
                yield _areas(folders, seed, k)
        for k, num_pairs in dict.fromkeys((one.k, one.num_pairs) for one in own):
            arms = [one.arm for one in own if (one.k, one.num_pairs) == (k, num_pairs)]
            yield _datasets(folders, seed, k, num_pairs, arms)
        for one in own:
            yield _training(folders, plan, one)
            yield _judging(folders, plan, seed, one.name(plan), folders.trained(seed, one.name(plan)))


def _engine_run(folders: Folders, plan: Plan, seed: int, k: int, arms: Sequence[str]) -> Task:
    also = [arm for arm in ("contrast", "mu_2sigma", "shuffled") if arm in arms]
    flags = ["--seed", seed, "--k", k, "--num", plan.num_questions(k), "--also", *also]
    command = lambda out: [(str(HERE / "run_engine.py"), str(out), *map(str, flags))]  # noqa: E731
    return Task(folders.run(seed, k), command, weight=plan.num_questions(k) * k / 100, resumes=True)


def _areas(folders: Folders, seed: int, k: int) -> Task:
    command = lambda out: [(str(HERE / "areas.py"), str(folders.run(seed, k)), str(out))]  # noqa: E731
    return Task(folders.areas(seed), command, needs=(folders.run(seed, k),), weight=5)


def _datasets(folders: Folders, seed: int, k: int, num_pairs: int, arms: Sequence[str]) -> Task:
    run = folders.run(seed, k)
    command = lambda out: [(str(HERE / "arms.py"), *map(str, (run, out, num_pairs, seed, *arms)))]  # noqa: E731
    return Task(folders.data(seed, k, num_pairs), command, needs=(run,), weight=5)


def _training(folders: Folders, plan: Plan, one: Training) -> Task:
    data = folders.data(one.seed, one.k, one.num_pairs)
    method = "sft" if one.arm.startswith("sft") else "dpo"
    recipe = {
        "model": str(folders.model), "dataset": str(data / one.arm), "method": method, "num_rows": one.num_pairs,
        "seed": one.seed, **settings()[method],
    }  # fmt: skip
    command = lambda out: [(str(HERE / "train.py"), str(out), json.dumps(recipe))]  # noqa: E731
    return Task(
        folders.trained(one.seed, one.name(plan)), command, needs=(folders.model, data), weight=one.num_pairs / 20
    )


def _judging(folders: Folders, plan: Plan, seed: int, name: str, model: Path) -> Task:
    command = lambda out: [(str(HERE / "judge.py"), str(model), str(out), str(seed), str(plan.num_pictures))]  # noqa: E731
    return Task(folders.judged(seed, name), command, needs=(model,), weight=plan.num_pictures / 50)
