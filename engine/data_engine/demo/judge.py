"""The demo's questions and its verdict: what the engine is given, and what came of it by the world's ground truth.

In: a number and a seed, or a run's dataset. Out: a parquet file of questions, or a printed table of rates.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.demo import world
from data_engine.errors import UserError
from data_engine.schemas import IMAGE

QUESTIONS_SCHEMA = pa.schema([("idx", pa.int64()), ("question", pa.string()), ("image", IMAGE)])
TRUTH_SCHEMA = pa.schema([("idx", pa.int64()), ("objects", pa.list_(pa.string()))])
# Chosen answers may have this share of the rejected answers' hallucinations at most.
LARGEST_RATIO = 0.25


def truth_path(questions: Path) -> Path:
    """The file beside the questions that holds what their pictures show; the engine never sees it."""
    return questions.with_suffix(".truth.parquet")


def write_questions(path: Path, num: int, seed: int) -> None:
    """`num` pictures with a question each, in the engine's input format, and the truth beside them."""
    if num < 1:
        raise UserError(f"--num must be at least 1, got {num}")
    scenes = [world.scene(seed, index) for index in range(num)]
    rows = [{"idx": s.index, "question": s.question, "image": {"bytes": _png(s), "path": None}} for s in scenes]
    truth = [{"idx": s.index, "objects": list(s.names)} for s in scenes]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=QUESTIONS_SCHEMA), path)
    pq.write_table(pa.Table.from_pylist(truth, schema=TRUTH_SCHEMA), truth_path(path))


def _png(scene: world.Scene) -> bytes:
    file = io.BytesIO()
    world.draw(scene).save(file, format="PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Tally:
    """Verdicts of many answers added up. `objects` counts the objects of the answers' pictures."""

    answers: int
    with_mistake: int
    claims: int
    wrong: int
    found: int
    objects: int

    @property
    def wrong_share(self) -> float:
        """Share of the claimed objects that are hallucinated."""
        return self.wrong / self.claims if self.claims else 0.0

    @property
    def mistake_share(self) -> float:
        """Share of the answers with at least one hallucination."""
        return self.with_mistake / self.answers if self.answers else 0.0

    @property
    def recall(self) -> float:
        """Share of the pictures' objects that the answers tell: saying little is no way to win."""
        return self.found / self.objects if self.objects else 0.0


def tally(answers: Iterable[tuple[str, tuple[str, ...]]]) -> Tally:
    """Add up the verdicts of (answer, names of the objects in its picture)."""
    verdicts = [(world.judge(text, truth), len(truth)) for text, truth in answers]
    return Tally(
        answers=len(verdicts),
        with_mistake=sum(verdict.wrong > 0 for verdict, _ in verdicts),
        claims=sum(verdict.claims for verdict, _ in verdicts),
        wrong=sum(verdict.wrong for verdict, _ in verdicts),
        found=sum(verdict.found for verdict, _ in verdicts),
        objects=sum(number for _, number in verdicts),
    )


def is_clearly_better(chosen: Tally, rejected: Tally) -> bool:
    """Whether chosen answers hallucinate at most LARGEST_RATIO times as much as rejected ones, which do at all."""
    return rejected.wrong > 0 and chosen.wrong_share <= LARGEST_RATIO * rejected.wrong_share


def judge_run(work_dir: Path, questions: Path) -> bool:
    """Print three pairs of a run's dataset and its hallucination rates; whether chosen is clearly better."""
    for path in (work_dir / "dataset", truth_path(questions)):
        if not path.exists():
            raise UserError(f"{path} does not exist: write the questions and run the engine first")
    truth = {row["idx"]: tuple(row["objects"]) for row in pq.read_table(truth_path(questions)).to_pylist()}
    columns = ["idx", "question", "chosen", "rejected"]
    files = sorted((work_dir / "dataset").glob("*.parquet"))
    pairs = [pair for file in files for pair in pq.read_table(file, columns=columns).to_pylist()]
    if not pairs:
        raise UserError(f"{work_dir / 'dataset'} has no pairs")
    for pair in pairs[:3]:
        print(_example(pair, truth[pair["idx"]]))
    chosen, rejected = (tally((pair[side], truth[pair["idx"]]) for pair in pairs) for side in ("chosen", "rejected"))
    better = is_clearly_better(chosen, rejected)
    print(summary(chosen, rejected, better))
    return better


def _example(pair: dict, truth: tuple[str, ...]) -> str:
    lines = [f"picture {pair['idx']} shows: {', '.join(truth)}", f"  question  {pair['question']}"]
    for side in ("chosen", "rejected"):
        verdict = world.judge(pair[side], truth)
        lines.append(f"  {side:9} {pair[side]}  [{verdict.wrong} of {verdict.claims} hallucinated]")
    return "\n".join(lines) + "\n"


def summary(chosen: Tally, rejected: Tally, better: bool) -> str:
    """The rates as a small table, with the verdict."""
    rows = [f"{'by ground truth, ' + str(chosen.answers) + ' pairs':32}{'chosen':>10}{'rejected':>10}"]
    for label, name in (
        ("hallucinated objects", "wrong_share"),
        ("answers that hallucinate", "mistake_share"),
        ("objects found", "recall"),
    ):
        rows.append(f"{label:32}{getattr(chosen, name):>10.1%}{getattr(rejected, name):>10.1%}")
    limit = f"{LARGEST_RATIO:.0%} of the rejected answers' rate"
    rows.append(f"chosen hallucinates {'at most' if better else 'MORE than'} {limit}: {'ok' if better else 'FAILED'}")
    return "\n".join(rows)
