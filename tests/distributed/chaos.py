"""Rounds of disturbance: a job of three ranks is killed, stopped, starved of disk or robbed of units, and run again.

    python tests/distributed/chaos.py FOLDER --rounds 200 --seed 0

A round is a work_dir of its own: one to three disturbed starts, then an undisturbed one to the end. Its dataset and
units must be those of an undisturbed run, with no stray file, and hardly a unit computed twice. The last line printed
is JSON: the hits in each window, the disturbances, and what went wrong. Ranks are real processes, forked from one that
has torch and the engine imported, so that a round takes seconds; the kills are real signals.
"""

import argparse
import collections
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow.parquet as pq
from jobs import GOLDENS, Job, Result, stray_files, write_hard_questions
from saboteur import Fault, Rank

# Where a rank can be when it dies; each leaves something different behind.
WINDOWS = (
    "model working", "mid-write", "before rename", "after rename", "claiming", "pairing", "swapping the dataset in",
    "writing the report",
)  # fmt: skip
OF_RANK_0 = WINDOWS[-3:]
RANKS = 3
FLAGS = (
    "--sample_k", "4", "--rank", "2", "--distance", "1000", "--max_new_tokens", "12", "--unit_size", "2",
    "--temperature", "1.0", "--grace_s", "1",
)  # fmt: skip
REWARDS = "implicit,contrast,yesno"
QUESTIONS = 14
PATIENCE_S = 120
OPERATIONS = ("write", "fsync", "rename")
# So many rounds hit each window several times, or the harness is broken.
ROUNDS_FOR_ALL_WINDOWS = 100


def _with(flags: list[str], others: Mapping[str, str]) -> list[str]:
    found = list(flags)
    for name, value in others.items():
        found[found.index(f"--{name}") + 1] = value
    return found


class Round:
    """One work_dir, disturbed and then run to the end."""

    def __init__(self, job: Job, rng: random.Random, hits: collections.Counter, told: collections.Counter) -> None:
        self.job, self.rng, self.hits, self.told = job, rng, hits, told
        self.log = job.work_dir.with_suffix(".log")
        self.starts = 0
        self.recomputed_on_purpose: set[tuple[str, int]] = set()

    def run(self, expected: Result) -> list[str]:
        """What went wrong; nothing, if all is well."""
        for _ in range(self.rng.randint(1, 3)):
            disturbance = self.rng.choice(self.disturbances)
            self.told[disturbance.__name__] += 1
            wrong = disturbance(self)
            if wrong:
                return [wrong]
        codes = self.wait(self.start())
        if any(codes):
            return [f"undisturbed ranks ended with {codes}"]
        return self.check(expected)

    def check(self, expected: Result) -> list[str]:
        wrong, result = [], Result.of(self.job.work_dir)
        if result.dataset != expected.dataset:
            wrong.append("another dataset")
        if result.units != expected.units:
            wrong.append("other units")
        wrong += [f"stray {path}" for path in stray_files(self.job.work_dir)]
        lines = [
            (line["stage"], line["unit"])
            for file in (self.job.work_dir / "logs").glob("rank-*.jsonl")
            for line in map(json.loads, file.read_text().splitlines())
            if "unit" in line
        ]
        twice = {unit for unit, times in collections.Counter(lines).items() if times > 1} - self.recomputed_on_purpose
        if len(twice) > RANKS * self.starts:
            wrong.append(f"computed twice: {sorted(twice)}")
        return wrong

    def start(self, fault: Fault | None = None, num_ranks: int = RANKS, **others: str) -> list[Rank]:
        """`others` are flags in the place of the job's."""
        self.starts += 1
        # Where several units are in a rank's hands.
        one_queue = self.rng.random() < 0.3
        faults = [fault if fault and fault.rank == rank else None for rank in range(num_ranks)]
        flags = _with(self.job.arguments(), others)
        return [Rank(flags, rank, num_ranks, faults[rank], self.log, one_queue) for rank in range(num_ranks)]

    def wait(self, ranks: list[Rank], patience_s: float = PATIENCE_S) -> list[int]:
        """Exit codes, negative for signals; a rank that hangs is killed and has -1000."""
        codes, end = {}, time.monotonic() + patience_s
        while len(codes) < len(ranks):
            for rank in ranks:
                if rank.pid not in codes:
                    pid, status = os.waitpid(rank.pid, os.WNOHANG)
                    if pid:
                        codes[pid] = os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                for rank in ranks:
                    if rank.pid not in codes:
                        os.kill(rank.pid, signal.SIGKILL)
                        os.waitpid(rank.pid, 0)
                        codes[rank.pid] = -1000
            time.sleep(0.005)
        return [codes[rank.pid] for rank in ranks]

    def kill(self, rank: Rank, number: int = signal.SIGKILL) -> None:
        # Stopped first, so that the window read is the one it dies in.
        os.kill(rank.pid, signal.SIGSTOP)
        if number == signal.SIGKILL and rank.where():
            self.hits[rank.where()] += 1
        os.kill(rank.pid, number)
        os.kill(rank.pid, signal.SIGCONT)

    def moment(self) -> None:
        """Wait for some part of what a whole job takes."""
        time.sleep(self.rng.uniform(0, self.whole_s))

    whole_s = 1.5
    disturbances: tuple[Callable[["Round"], str], ...] = ()


def sigkill_one(round_: Round) -> str:
    ranks = round_.start()
    round_.moment()
    round_.kill(round_.rng.choice(ranks))
    codes = round_.wait(ranks)
    return "" if set(codes) <= {0, -9} else f"the others of a killed rank ended with {codes}"


def sigkill_all(round_: Round) -> str:
    ranks = round_.start()
    round_.moment()
    for rank in ranks:
        round_.kill(rank)
    round_.wait(ranks)
    return ""


def sigterm_all(round_: Round) -> str:
    ranks = round_.start()
    round_.moment()
    for rank in ranks:
        round_.kill(rank, signal.SIGTERM)
    codes = round_.wait(ranks)
    # Before the engine listens, the signal kills.
    return "" if set(codes) <= {0, 75, -15} else f"signalled ranks ended with {codes}"


def freeze_and_kill_one(round_: Round) -> str:
    ranks = round_.start()
    round_.moment()
    victim = round_.rng.choice(ranks)
    os.kill(victim.pid, signal.SIGSTOP)
    round_.moment()
    if victim.where():
        round_.hits[victim.where()] += 1
    os.kill(victim.pid, signal.SIGKILL)
    codes = round_.wait(ranks)
    return "" if set(codes) <= {0, -9} else f"the others of a frozen rank ended with {codes}"


def die_in_a_window(round_: Round) -> str:
    window = round_.rng.choice(WINDOWS)
    rank = 0 if window in OF_RANK_0 else round_.rng.randrange(RANKS)
    ranks = round_.start(Fault(rank, window=window, after=round_.rng.randrange(1 if rank == 0 else 4)))
    codes = round_.wait(ranks)
    round_.hits[window] += codes.count(-9)
    return "" if set(codes) <= {0, -9} else f"the others of a dead rank ended with {codes}"


def failing_disk(round_: Round) -> str:
    number = round_.rng.choice((errno.ENOSPC, errno.EIO))
    operation = round_.rng.choice(OPERATIONS)
    ranks = round_.start(
        Fault(round_.rng.randrange(RANKS), operation=operation, number=number, after=round_.rng.randrange(6))
    )
    codes = round_.wait(ranks)
    return "" if set(codes) <= {0, 75} else f"{operation} failed with {os.strerror(number)}: {codes}"


def _published(round_: Round) -> list[Path]:
    return sorted(round_.job.work_dir.glob("*/unit-?????.parquet"))


def damage_units(round_: Round) -> str:
    if any(codes := round_.wait(round_.start())):
        return f"ranks before the damage ended with {codes}"
    for path in round_.rng.sample(_published(round_), 2):
        content = bytearray(path.read_bytes())
        content[round_.rng.randrange(len(content))] ^= 1 << round_.rng.randrange(8)
        path.write_bytes(content)
        _expect_again(round_, path)
    # Nothing is read where all is there: pairing again reads everything.
    (round_.job.work_dir / "pairs/pairs.parquet").unlink()
    return ""


def delete_units(round_: Round) -> str:
    if any(codes := round_.wait(round_.start())):
        return f"ranks before the loss ended with {codes}"
    for path in round_.rng.sample(_published(round_), 3):
        path.unlink()
        _expect_again(round_, path)
    return ""


def _expect_again(round_: Round, path: Path) -> None:
    round_.recomputed_on_purpose.add((path.parent.name, int(path.stem.removeprefix("unit-"))))


def _kept_pairs(round_: Round) -> list[dict]:
    """None before there is a file of them."""
    files = (round_.job.work_dir / "pairs").glob("pairs.parquet")
    return [row for file in files for row in pq.read_table(file).to_pylist() if row["status"] == "kept"]


def _rows_of_dataset(round_: Round) -> list[dict]:
    """None before there is one."""
    files = sorted((round_.job.work_dir / "dataset").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def second_job(round_: Round) -> str:
    one = round_.start()
    round_.moment()
    other = round_.start(num_ranks=2)
    codes = round_.wait(one) + round_.wait(other)
    return "" if not any(codes) else f"two jobs at once ended with {codes}"


def other_rewards_at_once(round_: Round) -> str:
    """Starts that add sources of reward of their own, each while the others add theirs."""
    ranks = []
    for rewards in round_.rng.sample(("implicit", "contrast,implicit", "yesno,implicit", REWARDS), 3):
        ranks += round_.start(num_ranks=2, rewards=rewards)
        if round_.rng.random() < 0.5:
            round_.moment()
    codes = round_.wait(ranks)
    return "" if not any(codes) else f"starts with other rewards ended with {codes}"


def other_pairing_at_once(round_: Round) -> str:
    """The pairs, and the dataset that is made of them, are those of one of two starts."""
    one = round_.start()
    round_.moment()
    other = round_.start(num_ranks=2, rank="1")
    codes = round_.wait(one) + round_.wait(other)
    if any(codes):
        return f"starts with other settings of pairing ended with {codes}"
    kept = {(row["idx"], row["chosen"], row["rejected"]) for row in _kept_pairs(round_)}
    written = {(row["idx"], row["chosen"], row["rejected"]) for row in _rows_of_dataset(round_)}
    return "" if written == kept else f"{len(written)} rows of the dataset, {len(kept)} kept pairs: of two starts"


def freeze_one_for_a_while(round_: Round) -> str:
    ranks = round_.start()
    round_.moment()
    victim = round_.rng.choice(ranks)
    os.kill(victim.pid, signal.SIGSTOP)
    other = round_.start(num_ranks=2) if round_.rng.random() < 0.5 else []
    round_.moment()
    os.kill(victim.pid, signal.SIGCONT)
    codes = round_.wait([*ranks, *other])
    return "" if not any(codes) else f"ranks beside one that was stopped for a while ended with {codes}"


def commands_beside(round_: Round) -> str:
    """What a person starts while ranks work: it reads what is there, or says what is not there yet."""
    ranks, work_dir = round_.start(), str(round_.job.work_dir)
    commands, output = [], round_.job.work_dir.with_suffix(".exports")
    for number in range(4):
        round_.moment()
        arguments = round_.rng.choice(
            (
                ["status", work_dir], ["report", work_dir], ["pairs", work_dir, "--name", "other", "--rank", "1"],
                ["export", work_dir, "--format", "trl,scored", "--output", str(output / str(number))],
            )
        )  # fmt: skip
        commands.append(Rank(arguments[1:], 0, 1, None, round_.log, command=arguments[0]))
    codes, told = round_.wait(ranks), round_.wait(commands)
    for path in (round_.job.work_dir / "pairs").glob("other.parquet"):
        path.unlink()
    if any(codes) or not set(told) <= {0, 2, 3}:
        return f"commands ended with {told}, the ranks beside them with {codes}"
    return ""


def picture_away(round_: Round) -> str:
    """A disk that is mounted late: its row is asked again once it is there, and what was published stays in use.

    A dataset that has pairs of the row stays as it is, which is an error of the start without the picture.
    """
    name = f"q{round_.rng.randrange(QUESTIONS):04d}"
    picture = round_.job.dataset.parent / f"pictures/{name}.png"
    before, usual = _rows_of_dataset(round_), {0, -9}
    if name in [row["idx"] for row in _kept_pairs(round_)]:
        usual.add(2)
    away = picture.with_suffix(".away")
    picture.rename(away)
    try:
        ranks = round_.start()
        if round_.rng.random() < 0.5:
            round_.moment()
            round_.kill(round_.rng.choice(ranks))
        codes = round_.wait(ranks)
    finally:
        away.rename(picture)
    for path in _published(round_):
        _expect_again(round_, path)
    if 2 in codes and _rows_of_dataset(round_) != before:
        return "a start without a picture changed the dataset that has pairs of it"
    return "" if set(codes) <= usual else f"ranks without a picture ended with {codes}"


def touched_model(round_: Round) -> str:
    """A model whose files have other times is hashed again, and is the same one."""
    for folder in (round_.job.instruct, round_.job.reward):
        for file in folder.glob("*.safetensors"):
            os.utime(file)
    return sigkill_one(round_)


DISTURBANCES = (
    sigkill_one, sigkill_all, sigterm_all, freeze_and_kill_one, die_in_a_window, die_in_a_window, failing_disk,
    damage_units, delete_units, second_job, picture_away, touched_model, other_rewards_at_once, other_pairing_at_once,
    freeze_one_for_a_while, commands_beside,
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of disturbances, which are functions of this file")
    arguments = parser.parse_args()
    Round.disturbances = tuple(one for one in DISTURBANCES if arguments.only is None or one.__name__ in arguments.only)
    # Imported before the ranks are forked, and no computation in this process: no thread is lost by the fork.
    from data_engine.job import worker  # noqa: F401
    from data_engine.models.native import llava, omnilmm  # noqa: F401

    hits, told, wrong = collections.Counter(), collections.Counter(), []
    dataset = arguments.folder / "questions.parquet"
    flags = (*FLAGS, *write_hard_questions(dataset, QUESTIONS), "--rewards", REWARDS)
    # The reward model is the judge as well.
    flags += ("--yesno_model_path", str(arguments.folder / "reward"))
    # Copies: their files are touched.
    for name in ("instruct", "reward", "openai"):
        shutil.copytree(GOLDENS / name, arguments.folder / name)

    def job(name: str) -> Job:
        return Job(dataset, arguments.folder / name, flags, arguments.folder / "instruct", arguments.folder / "reward")

    calm = Round(job("calm"), random.Random(), hits, told)
    started = time.monotonic()
    codes = calm.wait(calm.start())
    assert not any(codes), calm.log.read_text()
    Round.whole_s = time.monotonic() - started
    expected = Result.of(calm.job.work_dir)
    for number in range(arguments.rounds):
        rng = random.Random(f"{arguments.seed}-{number}")
        round_ = Round(job(f"round-{number}"), rng, hits, told)
        found = round_.run(expected)
        if found or "Traceback" in round_.log.read_text():
            wrong.append({"round": number, "wrong": found or ["a traceback"], "log": str(round_.log)})
            print(json.dumps(wrong[-1]), flush=True)
        print(f"round {number + 1}/{arguments.rounds}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    never = [window for window in WINDOWS if not hits[window]]
    if never and arguments.only is None and arguments.rounds >= ROUNDS_FOR_ALL_WINDOWS:
        wrong.append({"wrong": [f"never hit: {', '.join(never)}"]})
    print(json.dumps({"hits": {window: hits[window] for window in WINDOWS}, "disturbances": told, "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
