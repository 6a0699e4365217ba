"""A finished run of 2,000 and more pairs, whose answers are real tokens and whose pictures are photographs."""

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import stage2_world
from PIL import Image
from sentencepiece import SentencePieceProcessor
from stage2_world import World

from data_engine import schemas
from data_engine.store.units import UnitResult

GOLDENS = Path(__file__).parents[1] / "goldens"
PHOTOGRAPHS = Path(__file__).parents[3] / "shared/photos/questions.parquet"
# What a browser, or a page that trusts texts, would act upon.
HOSTILE = [
    '<script>window.broken = "script"</script>',
    '"><img src=x onerror="window.broken = 1">',
    "</script><script>window.broken = 'end'</script>",
    "<!--<script>window.broken = 'comment'</script>",
    "javascript:window.broken=1 <a href='https://example.invalid/'>here</a>",
    "<svg onload=window.broken=1><style>*{display:none}</style>",
    "&lt;b&gt; &amp; \u2028 \u2029 \u202eright to left\u202c",
    "a word of " + "w" * 300,
    "https://example.invalid/a.png <link rel=stylesheet href=https://example.invalid/a.css>",
    "{{ 7 * 7 }} ${7 * 7} {% raw %}",
    "ما هو الموجود في الصورة؟",
]


@dataclass
class TokenWorld(World):
    """A world whose answers were written by a tokenizer; `tokens` are the ids of each, with the end token."""

    tokens: dict[tuple[str, int], list[int]] | None = None

    def publish(self, work_dir: Path, **given) -> None:
        questions = self.questions()
        for unit, span in enumerate(self.units()):
            idxs = set(questions.idx[span.start : span.stop])
            rows = [row for row in self.rows if row["idx"] in idxs]
            digests = [question.digest for question in questions.rows(span)]
            for stage in ("sampled_answer", "instruct_logps", "reward_logps"):
                schema = schemas.sampled_answer if stage == "sampled_answer" else schemas.logps
                table = pa.Table.from_pylist([self._record(stage, row) for row in rows], schema(questions.idx_type))
                stage2_world.publish(work_dir, stage, unit, UnitResult(table, [], rows=digests))

    def _record(self, stage: str, row: dict) -> dict:
        ids = self.tokens[row["idx"], row["sample_index"]]
        return stage2_world._record(stage, row) | ({"token_ids": ids} if stage == "sampled_answer" else {})


def pictures(number: int) -> list[bytes]:
    """JPEGs of 640 x 480: parts of real photographs where those are there, else grain, which compresses as badly."""
    draw, found = random.Random(3), []
    if PHOTOGRAPHS.is_file():
        rows = pq.read_table(PHOTOGRAPHS, columns=["image"])["image"].to_pylist()
        sources = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in rows[::2]]
    else:
        grain = np.random.default_rng(3).integers(0, 256, (8, 120, 160, 3), np.uint8)
        sources = [Image.fromarray(one).resize((1600, 1200), Image.Resampling.BICUBIC) for one in grain]
    for at in range(number):
        whole = sources[at % len(sources)]
        width, height = (draw.randrange(side // 2, side) for side in whole.size)
        left, top = draw.randrange(whole.width - width + 1), draw.randrange(whole.height - height + 1)
        file = io.BytesIO()
        whole.crop((left, top, left + width, top + height)).resize((640, 480)).save(file, "JPEG", quality=80)
        found.append(file.getvalue())
    return found


def make(folder: Path, num_questions: int = 900) -> TokenWorld:
    """Answers of 5 to 60 words; the first questions and answers are hostile."""
    draw = random.Random(5)
    processor = SentencePieceProcessor(str(GOLDENS / "llava/instruct/tokenizer.model"))
    hostile = dict(enumerate(HOSTILE))
    folder.mkdir(parents=True)
    idxs = [f"q{at:04d}" for at in range(num_questions)]
    table = {
        "idx": idxs,
        "question": [
            hostile.get(at, f"What is in picture {at}, and what lies near it?") for at in range(num_questions)
        ],
        "image": [{"bytes": one, "path": f"{at}.jpg"} for at, one in enumerate(pictures(num_questions))],
    }
    pq.write_table(pa.table(table), folder / "questions.parquet", row_group_size=50)
    rows, tokens = [], {}
    for at, idx in enumerate(idxs):
        for sample_index in range(6):
            count = draw.randrange(20, 40)
            words = " ".join(draw.choices([*stage2_world.WORDS, "seldom,", "zebra.", "glass"], k=count)).capitalize()
            answer = f"{hostile[at]} {words}" if at in hostile else words
            ids = processor.encode(answer)
            # What the tokenizer cannot write is no answer that it could have written.
            answer = processor.decode(ids).strip()
            tokens[idx, sample_index] = [*ids, 2]
            scores = [[-draw.expovariate(1.2) for _ in range(len(ids) + 1)] for _ in range(2)]
            row = {
                "idx": idx,
                "sample_index": sample_index,
                "answer": answer,
                "instruct": scores[0],
                "reward": scores[1],
            }
            rows.append(row)
    return TokenWorld(folder, rows, 50, tokens)


def finish(world: TokenWorld, work_dir: Path) -> None:
    """Publish all stages, and pair."""
    world.publish(work_dir)
    config = {"instruct_model_path": str(GOLDENS / "llava/instruct"), "dataset_path": str(world.dataset_path)}
    (work_dir / "run.json").write_text(json.dumps({"config": config, "bound": {}}))
    world.pair(work_dir, distance=40)
