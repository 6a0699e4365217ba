"""A few questions of every shape, with pairs, and exports of them in any format."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image
from question_files import write_jsonl
from run_files import png
from stage2_world import publish

from data_engine import exports, schemas
from data_engine.exports.base import ExportSource, Written
from data_engine.questions.dataset import Questions, load_questions
from data_engine.store.folders import scratch_folder
from data_engine.store.units import UnitResult, split_units

ODD = 'Is "好" a\ncharacter?\r\n\u2028\x00🙂 {{content}} {% if %} \\n'
PLACE = {"type": "image"}
# The third question has the picture of the first; `two` has pictures within its text.
QUESTIONS = [
    {"idx": "one", "question": "What is red?", "images": ["red.png"]},
    {"idx": "odd", "question": ODD, "images": ["blue.png"]},
    {"idx": "same", "question": "Is it red?", "images": ["red.png"]},
    {"idx": "both", "question": "Which is larger?", "images": ["blue.png", "red.png"]},
    {
        "idx": "two",
        "messages": [{"role": "user", "content": [
            {"type": "text", "text": "Between "}, PLACE, {"type": "text", "text": " and "}, PLACE,
        ]}],
        "images": ["red.png", "blue.png"],
    },
    {"idx": "late", "messages": [{"role": "user", "content": [{"type": "text", "text": "See "}, PLACE]}],
     "images": ["red.png"]},
    {"idx": "none", "question": "How many days has a week?", "images": []},
    {"idx": "system", "question": "And green?", "images": ["blue.png"], "system": "Be brief."},
    {
        "idx": "turns",
        "messages": [
            {"role": "user", "content": [PLACE, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": "A square."},
            {"role": "user", "content": "Which colour?"},
        ],
        "images": ["red.png"],
    },
]  # fmt: skip
# What a reader makes of them.
MESSAGES = {
    "one": [("user", (0, "What is red?"))],
    "odd": [("user", (0, ODD))],
    "same": [("user", (0, "Is it red?"))],
    "both": [("user", (0, 1, "Which is larger?"))],
    "two": [("user", ("Between ", 0, " and ", 1))],
    "late": [("user", ("See ", 0))],
    "none": [("user", ("How many days has a week?",))],
    "system": [("system", ("Be brief.",)), ("user", (0, "And green?"))],
    "turns": [("user", (0, "What is it?")), ("assistant", ("A square.",)), ("user", ("Which colour?",))],
}


def square(colour: str) -> bytes:
    return png(Image.new("RGB", (40, 30), colour))


def pictures_of(row: Mapping) -> list[bytes]:
    """The pictures of a row of QUESTIONS."""
    return [square(name.removesuffix(".png")) for name in row["images"]]


def pair_of(idx: object, chosen: str, rejected: str, indices: tuple[int, int] = (0, 1), sums=(1.5, -0.25)) -> dict:
    """A row of schemas.pairs, as far as an export reads it."""
    names = ("chosen_index", "rejected_index", "chosen_sum", "rejected_sum", "margin")
    numbers = dict(zip(names, (*indices, *sums, sums[0] - sums[1]), strict=True))
    return {"idx": idx, "chosen": chosen, "rejected": rejected, **numbers}


def three_each(rows: Iterable[Mapping] = QUESTIONS) -> list[dict]:
    """Of each question two chosen answers and two rejected ones, in three pairs."""
    return [
        pair_of(row["idx"], f"good {good} of {row['idx']}", f"bad {bad} 'of' \"{row['idx']}\" 好\n", (good, bad),
                (good + 0.5, -bad))
        for row in rows
        for good, bad in ((0, 8), (0, 9), (1, 9))
    ]  # fmt: skip


def best_each(rows: Iterable[Mapping] = QUESTIONS) -> list[dict]:
    """Rows of schemas.scored, as far as an export of best answers reads them: of each question the second one is it."""
    return [
        {"idx": row["idx"], "sample_index": number, "answer": f"{text} of {row['idx']}", "sum": 1.5 - place,
         "sum_rank": place, "avg_rank": place, "not_ranked": None}
        for row in rows
        for number, (text, place) in enumerate([("good", 2), ("best", 1), ("bad", 3)])
    ]  # fmt: skip


def write_export(
    folder: Path, name: str, rows: list[dict] = QUESTIONS, pairs: list[dict] | None = None, unit_size: int = 2, **source
) -> tuple[Path, Written]:
    """Export pairs or best answers of some questions in a format, under the folder, where everything else lies too."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour in ("red", "blue"):
        (folder / f"{colour}.png").write_bytes(square(colour))
    questions = load_questions(str(write_jsonl(folder / "q.jsonl", *rows)), image_root=str(folder))
    spans = split_units(len(questions), unit_size)
    for unit, span in enumerate(spans):
        digests = [question.digest for question in Questions.rows(questions, span)]
        sampled = schemas.sampled_answer(questions.idx_type).empty_table()
        publish(folder / "work", "sampled_answer", unit, UnitResult(sampled, [], rows=digests))
    source = {"answers": best_each(rows)} | source
    made_from = ExportSource(
        three_each(rows) if pairs is None else pairs, questions, spans, folder / "work", 0, **source
    )
    with scratch_folder(folder, "test") as scratch:
        return folder / name, exports.export(name, made_from, folder / name, scratch)


def expected_pairs(of: Iterable[str] = MESSAGES) -> list[dict]:
    """What a reader gives for the pairs of three_each, in any order."""
    rows = {row["idx"]: row for row in QUESTIONS}
    return [
        {"messages": MESSAGES[pair["idx"]], "images": pictures_of(rows[pair["idx"]]), "chosen": pair["chosen"],
         "rejected": pair["rejected"]}
        for pair in three_each([rows[idx] for idx in of])
    ]  # fmt: skip


def expected_answers(of: Iterable[str] = MESSAGES) -> list[dict]:
    """The same of the answers, each once."""
    rows = {row["idx"]: row for row in QUESTIONS}
    return [
        {"messages": MESSAGES[idx], "images": pictures_of(rows[idx]), "answer": answer, "label": label}
        for idx in of
        for label, texts in ((True, ["good 0 of {}", "good 1 of {}"]), (False, ["bad 8 'of' \"{}\" 好\n",
                                                                              "bad 9 'of' \"{}\" 好\n"]))
        for answer in (text.format(idx) for text in texts)
    ]  # fmt: skip


def expected_best(of: Iterable[str] = MESSAGES) -> list[dict]:
    """The same of the best answers."""
    rows = {row["idx"]: row for row in QUESTIONS}
    return [
        {"messages": MESSAGES[idx], "images": pictures_of(rows[idx]), "answer": f"best of {idx}"} for idx in of
    ]  # fmt: skip


def in_order(rows: Iterable[dict]) -> list[dict]:
    """Rows of a reader in an order that compares."""
    return sorted(rows, key=repr)
