"""A critic's texts in whole runs: those that stock transformers generates greedily from the prompt of the template."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from asked import Asked
from families import named
from runs import SETTINGS, question
from tiny_parts import picture

from data_engine.config import RunConfig
from data_engine.job import worker

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

TOKENS = 64
PROMPT = "Asked: {question}\nAnswered: {answer} {{answer}} {other}\nScore?"
WIDE, HIGH = (140, 100), (90, 170)
SIZES = {"one": (WIDE,), "two": (WIDE, HIGH), "none": ()}
ANSWERS = ["A dog.", "It is {question}.", "Two cats."]


def shown(sizes: tuple) -> list:
    """As Asked has them."""
    return [picture(*size, seed=sum(size)) for size in sizes]


@pytest.mark.parametrize("name", named(["qwen2_5_vl", "llava_next"]))
def test_a_critics_texts_are_those_of_generate(checkpoints, tmp_path, name):
    checkpoint = checkpoints(name)
    rows = [question(idx, f"What is {idx}?", *shown(sizes)) for idx, sizes in SIZES.items()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "questions.parquet")
    lines = [{"idx": idx, "answer": text} for idx in SIZES for text in ANSWERS]
    (tmp_path / "answers.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    template = {"prompt": PROMPT, "number": r"([0-9])", "max_new_tokens": TOKENS}
    (tmp_path / "template.yaml").write_text(yaml.safe_dump(template))
    flags = {"dataset_path": tmp_path / "questions.parquet", "answers": tmp_path / "answers.jsonl",
             "critic_model_path": checkpoint.folder, "critic_template": tmp_path / "template.yaml",
             "work_dir": tmp_path / "work", "critic_model_name": "auto"}  # fmt: skip
    flags = SETTINGS | {flag: str(value) for flag, value in flags.items()}
    assert worker.run(RunConfig(**flags, rewards="critic", stop_after_stage=1)) == 0
    found = {}
    for file in sorted((tmp_path / "work/critic").glob("unit-*.parquet")):
        for row in pq.read_table(file).to_pylist():
            found[row["idx"], row["sample_index"]] = row
    assert len(found) == len(SIZES) * len(ANSWERS)
    for (idx, index), row in found.items():
        # Nothing is put into what was put in, and other braces are text.
        prompt = f"Asked: What is {idx}?\nAnswered: {ANSWERS[index]} {{{ANSWERS[index]}}} {{other}}\nScore?"
        assert row["critique"] == generated(checkpoint, Asked(SIZES[idx], prompt))
        digits = [letter for letter in row["critique"] if letter in "0123456789"]
        assert row["score"] == (float(digits[-1]) if digits else None)
        assert (row["reason"] is None) == bool(digits)
    # A text without a number is tests/rewards/test_reward_critic.py's.
    assert any(row["score"] is not None for row in found.values())


def generated(checkpoint, asked: Asked) -> str:
    """What stock transformers generates greedily."""
    ids, _ = checkpoint.stock.greedy(asked, TOKENS, checkpoint.model.banned_token_ids, checkpoint.ends)
    return checkpoint.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
