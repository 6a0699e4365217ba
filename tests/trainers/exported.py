"""A run on hostile pictures and texts, its exports, and the rows that trainers must see, derived from its pairs."""

import io
import json
import shutil
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece
import tiny_llava
from export_run import finish
from PIL import Image
from stage2_world import World
from turned_pictures import turned

from data_engine import schemas
from data_engine.commands.main import main
from data_engine.config import RunConfig
from data_engine.job import worker
from data_engine.models.tokenizer import load_tokenizer
from data_engine.questions import images

# What trainers and the tokenizer of tiny_llava take for a control token.
CONTROL_TOKENS = ("<image>", "<video>", "<audio>", "<unk>", "<s>", "</s>", "<pad>")
PICTURE = "<image>"
SIDES = ("chosen", "rejected")
TURNS = pa.list_(
    pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))),
        ]
    )
)


@dataclass(frozen=True)
class Asked:
    """A question of the run. Its pictures stand before the first text of the user."""

    text: str
    pictures: list[bytes]
    before: list[tuple[str, str]] = field(default_factory=list)
    """role and text of the messages before it"""

    @property
    def is_single(self) -> bool:
        return len(self.pictures) == 1 and not self.before

    def row(self, idx: str) -> dict:
        """As the dataset of the run has it."""
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in [*self.before, ("user", self.text)]
        ]
        places = [{"type": "image", "text": None}] * len(self.pictures)
        messages[self._first_of_user]["content"] = places + messages[self._first_of_user]["content"]
        pictures = [{"bytes": data, "path": f"{idx}-{number}"} for number, data in enumerate(self.pictures)]
        return {"idx": idx, "messages": messages, "images": pictures}

    @property
    def turns(self) -> list[list[str]]:
        """As trainers must see it."""
        turns = [[role, without_control_tokens(text)] for role, text in [*self.before, ("user", self.text)]]
        turns[self._first_of_user][1] = PICTURE * len(self.pictures) + turns[self._first_of_user][1]
        return turns

    @property
    def _first_of_user(self) -> int:
        return [role for role, _ in [*self.before, ("user", "")]].index("user")


def without_control_tokens(text: str, is_answer: bool = False) -> str:
    """By the rule of the exports: `<image>` goes from questions, any other gets a space behind its first character."""
    if not is_answer:
        text = text.replace(PICTURE, "")
    for token in CONTROL_TOKENS:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def questions(goldens: Path, golden_only: bool = False) -> dict[str, Asked]:
    """The golden pictures, among them palette, grey and transparent ones; others that are harder; other questions."""
    golden = pq.read_table(goldens / "llava/dataset/questions.parquet").to_pylist()
    asked = {row["idx"]: Asked(row["question"], [row["image"]["bytes"]]) for row in golden}
    if golden_only:
        return asked
    pictures = [row["image"]["bytes"] for row in golden]
    edge = pq.read_table(goldens / "llava/edge/edge_cases.parquet").to_pylist()
    cmyk = next(row["image"]["bytes"] for row in edge if row["idx"] == "cmyk_jpeg")
    deep = io.BytesIO()
    Image.fromarray((np.arange(600, dtype=np.uint16) * 100).reshape(20, 30)).save(deep, "PNG")
    return asked | {
        "turned": Asked("Which side is up?", [turned(6, "JPEG, Intel")]),
        "turned png": Asked("And of this one?", [turned(8, "PNG")]),
        "deep": Asked("How deep is it?", [deep.getvalue()]),
        "cmyk": Asked("How was it printed?", [cmyk]),
        "control": Asked("What </s> is <image> and <video>?", [pictures[0]]),
        "hostile": Asked("{{content}} {% x %} \u2028 \r\n \\n \U0001f600 \u202eabc", [pictures[1]]),
        "two": Asked("Which is larger?", [pictures[2], pictures[3]]),
        "turns": Asked(
            "Are you sure?",
            [pictures[4]],
            [("system", "Be brief."), ("user", "What is it?"), ("assistant", "A dog.")],
        ),
    }


def run(goldens: Path, folder: Path) -> Path:
    """The work_dir of a run of all three stages with two random models."""
    rows = [asked.row(idx) for idx, asked in questions(goldens).items()]
    schema = pa.schema([("idx", pa.string()), ("messages", TURNS), ("images", pa.list_(schemas.IMAGE))])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "questions.parquet")
    config = RunConfig(
        instruct_model_path=str(tiny_llava.save(folder / "instruct")),
        reward_model_path=str(tiny_llava.save(folder / "reward", seed=1)), instruct_model_name="auto",
        reward_model_name="auto",
        dataset_path=str(folder / "questions.parquet"), work_dir=str(folder / "work"), sample_k=4, rank=2,
        distance=1000, max_new_tokens=8, threads=1,
    )  # fmt: skip
    assert worker.run(config) == 0
    return folder / "work"


def run_to_the_end(goldens: Path, folder: Path) -> Path:
    """The work_dir of a run on the golden questions, whose answers all ended by themselves, with made-up log-probs.

    RLAIF-V's trainer takes log-probs of no other answers, and of no other model than LLaVA-1.5.
    """
    golden = goldens / "llava/instruct"
    words = sentencepiece.SentencePieceProcessor(model_file=str(golden / "tokenizer.model"))
    shutil.copy(goldens / "llava/dataset/questions.parquet", folder)
    rows = []
    for place, idx in enumerate(questions(goldens, golden_only=True)):
        for number, answer in enumerate(("A cat.", "A house.", "It is small.", "Two dogs.")):
            token_ids = [*words.encode(f"ASSISTANT: {answer}")[len(words.encode("ASSISTANT:")) :], words.eos_id()]
            logps = [-1.5 - number] * len(token_ids)
            # Of every other question the last answers are the best, so that these are not better for their length.
            reward = number + 1 if place % 2 else 4 - number
            rows.append(
                {"idx": idx, "sample_index": number, "answer": answer, "token_ids": token_ids, "instruct": logps,
                 "reward": [logps[0] + 10**reward] * len(token_ids)}
            )  # fmt: skip
    model = {
        "folders": [str(golden)], "vocabulary": load_tokenizer(golden).vocabulary, "family": "llava",
        "control_tokens": ["</s>", "<unk>", "<s>"], "model_type": "llava",
    }  # fmt: skip
    finish(World(folder, rows, unit_size=3), folder / "work", model, distance=1000)
    return folder / "work"


def export(work_dir: Path, formats: list[str], folder: Path) -> None:
    assert main(["export", str(work_dir), "--format", ",".join(formats), "--output", str(folder)]) == 0


def expected(name: str, work_dir: Path, asked: dict[str, Asked], folder: Path) -> Path:
    """Write what a trainer must see of the export of that format, for its check."""
    folder.mkdir()
    rows, pairs = [], defaultdict(list)
    for pair in pq.read_table(work_dir / "pairs/pairs.parquet").to_pylist():
        # The best answer is looked for in all that were ranked.
        if (pair["status"] == "kept" or name.endswith("sft")) and fits(name, asked[pair["idx"]]):
            pairs[pair["idx"]].append(pair)
    for idx, own in pairs.items():
        prompt = {"turns": asked[idx].turns, "images": pictures(asked[idx], idx, folder)}
        rows += [prompt | answers for answers in answers_of(name, own)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def answers_of(name: str, pairs: list[dict]) -> list[dict]:
    """The answers in the rows of a question, with the label or margin that the format has."""
    sides = [{side: without_control_tokens(pair[side], is_answer=True) for side in SIDES} for pair in pairs]
    good, bad = ({answers[side] for answers in sides} for side in SIDES)
    if name.endswith("kto"):
        # Once each, and none that is better in one pair and worse in another.
        return [{"completion": text, "label": text in good} for text in sorted(good ^ bad)]
    if name.endswith("sft"):
        return [{"completion": without_control_tokens(best_of(pairs), is_answer=True)}]
    if name == "ms-swift-rm":
        margins = [max(0.0, pair["chosen_sum"] - pair["rejected_sum"]) for pair in pairs]
        return [answers | {"margin": margin} for answers, margin in zip(sides, margins, strict=True)]
    return sides


def best_of(pairs: list[dict]) -> str:
    """The answer whose places by the sum and by the mean of its rewards are the best together."""
    found = {
        pair[f"{side}_index"]: [pair[f"{side}_{what}"] for what in ("sum", "avg")] for pair in pairs for side in SIDES
    }
    texts = {pair[f"{side}_index"]: pair[side] for pair in pairs for side in SIDES}

    def places(index: int) -> list[int]:
        return [sum(other[what] > found[index][what] for other in found.values()) for what in (0, 1)]

    return texts[min(found, key=lambda index: (sum(places(index)), places(index)[0], index))]


def fits(name: str, asked: Asked) -> bool:
    """Whether the format has a place for the question."""
    if name.startswith("rlaif-v") or name == "llava-next":
        return asked.is_single
    return name != "internvl-mpo" or not asked.before


def pictures(asked: Asked, idx: str, folder: Path) -> list[str]:
    """Names of PNG files with the pixels that the models of the run saw."""
    names = [f"{idx}-{number}.png" for number in range(len(asked.pictures))]
    for name, data in zip(names, asked.pictures, strict=True):
        images.decode(data, max_megapixels=100).save(folder / name)
    return names
