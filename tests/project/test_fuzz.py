"""Made-up datasets and answers: whatever they hold, the user gets a dataset or a message, never a traceback."""

import contextlib
import io
import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import FEW, examples, profile
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from report_page import Page
from stage2_world import MARKERS, World, dataset_rows, pairs_rows

from data_engine.commands import main
from data_engine.errors import UserError
from data_engine.planning import weights
from data_engine.preferences.strategies import build_pairs
from data_engine.preferences.word_count import count_words
from data_engine.questions.dataset import load_questions
from data_engine.reporting import page

# A file system that is busy is no finding.
quietly = settings(suppress_health_check=[HealthCheck.too_slow])
STRANGE = (
    *MARKERS, " ", "\t\n", "\0", "\x1b[31m", "\u202e", "\ufeff", "e\u0301", "é", "犬", "ﷺ", "a.", "...", "'", '"',
    "nan", "\u2028", "<script>", "{{x}}", "%s", "\\", "../..", "a" * 5000, "why " * 3000,
)  # fmt: skip
texts = st.text(max_size=12) | st.lists(st.sampled_from(STRANGE) | st.text(max_size=4), max_size=6).map("".join)
columns_of_ids = {
    "string": (pa.string(), texts | st.none()),
    "large_string": (pa.large_string(), texts),
    "binary": (pa.binary(), st.binary(max_size=5)),
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1) | st.none()),
    "uint8": (pa.uint8(), st.integers(0, 255)),
    "double": (pa.float64(), st.floats()),
    "bool": (pa.bool_(), st.booleans()),
    "list": (pa.list_(pa.int8()), st.lists(st.integers(0, 3), max_size=2)),
    "null": (pa.null(), st.none()),
}
columns_of_questions = {
    "string": (pa.string(), texts | st.none()),
    "binary": (pa.binary(), st.binary(max_size=12) | texts.map(str.encode) | st.none()),
    "int64": (pa.int64(), st.integers(-9, 9)),
}
image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
columns_of_images = {
    "struct": (
        image,
        st.none() | st.fixed_dictionaries({"bytes": st.none() | st.binary(max_size=9), "path": st.none() | texts}),
    ),
    "binary": (pa.binary(), st.none() | st.binary(max_size=9)),
    "string": (pa.string(), st.none() | texts),
    "int64": (pa.int64(), st.integers(0, 9)),
}
cells_of_images = columns_of_images["struct"][1]
columns_of_lists = {
    "structs": (pa.list_(image), st.none() | st.lists(cells_of_images, max_size=3)),
    "texts": (pa.large_list(pa.string()), st.none() | st.lists(st.none() | texts, max_size=2)),
    "pairs": (
        pa.list_(pa.binary(), 2),
        st.none() | st.lists(st.none() | st.binary(max_size=9), min_size=2, max_size=2),
    ),
    "null": (pa.null(), st.none()),
    "string": (pa.string(), texts),
}
roles = st.sampled_from(["user"] * 4 + ["assistant", "system", "tool", ""])
part = pa.struct([("type", pa.string()), ("text", pa.string()), ("index", pa.int64())])
parts = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["text", "text", "image", "image", "video"]) | st.none(),
        "text": st.none() | texts | st.just("<image>"),
        "index": st.none() | st.integers(0, 2),
    }
)
texts_of_messages = st.fixed_dictionaries(
    {"role": roles | st.none(), "content": st.none() | texts | st.just("<image>")}
)
parts_of_messages = st.fixed_dictionaries({"role": roles, "content": st.none() | st.lists(parts, max_size=4)})
columns_of_messages = {
    "parts": (
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part))])),
        st.none() | st.lists(parts_of_messages, max_size=3),
    ),
    "texts": (
        pa.list_(pa.struct([("content", pa.large_string()), ("role", pa.string())])),
        st.none() | st.lists(texts_of_messages, max_size=3),
    ),
    "string": (pa.string(), st.none() | texts | st.lists(parts_of_messages, max_size=2).map(json.dumps)),
    "int64": (pa.int64(), st.integers(0, 9)),
}
others = {"string": (pa.string(), texts | st.none()), "double": (pa.float64(), st.floats() | st.none())}


@st.composite
def tables(draw) -> pa.Table:
    """A few rows; each column of the right type more often than not, and sometimes none at all."""
    num_rows, found = draw(st.integers(0, 5)), {}
    kinds = {"idx": columns_of_ids, "question": columns_of_questions, "image": columns_of_images, "ds_name": others}
    rare = {"images": columns_of_lists, "messages": columns_of_messages, "system": others}
    for name, known in (kinds | rare).items():
        usual = [None] if name in rare else [next(iter(known))]
        kind = draw(st.sampled_from(usual * 6 + [*known, None]))
        if kind is not None:
            type, cells = known[kind]
            unique = name == "idx" and kind in ("string", "int64") and draw(st.integers(0, 4)) > 0
            cells = cells.filter(lambda cell: cell is not None) if unique else cells
            values = draw(st.lists(cells, min_size=num_rows, max_size=num_rows, unique=unique))
            found[name] = pa.array(values, type)
    return pa.table(found)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
json_rows = st.fixed_dictionaries(
    {"idx": st.integers(0, 99) | json_values},
    optional={
        "question": texts | json_values,
        "image": texts | json_values,
        "images": st.lists(texts, max_size=2) | json_values,
        "messages": st.lists(texts_of_messages | parts_of_messages, max_size=3) | json_values,
        "system": texts | json_values,
    },
)
# Half a surrogate pair, which JSON can spell.
lines = (json_rows | json_values).map(json.dumps) | texts | st.just('{"idx": "\\ud800", "question": "\\udfff"}')


def read_all(path: Path, image_root: Path) -> None:
    """Every row that is not refused as a whole has a question and its images, or a problem."""
    try:
        questions = load_questions(str(path), image_root=str(image_root))
    except UserError:
        return
    rows = list(questions.rows(range(len(questions))))
    assert [row.idx for row in rows] == questions.idx
    for row in rows:
        if row.problem is None:
            asked, images = row.conversation, row.images
            assert asked.messages[-1].role == "user"
            assert row.question == asked.question
            numbers = [part for one in asked.messages for part in one.content if isinstance(part, int)]
            assert numbers == list(range(len(images)))
            assert all(images)
            assert row.image == (images[0] if len(images) == 1 else None)
            assert images or "images" in questions.columns or not questions.has_images
            assert len(row.digest) == 32
            "".join(asked.texts()).encode()
        else:
            assert 0 < len(row.problem) < 400
            assert (row.image, row.images, row.conversation, row.digest) == (None, (), None, None)


def test_data_is_the_same_each_time_unless_other_data_is_asked_for():
    fixed, other = profile(None), profile("20")
    assert (fixed.derandomize, fixed.max_examples) == (True, FEW)
    assert (other.derandomize, other.max_examples) == (False, 20 * FEW)
    # The settings of this file's tests are made from the profile that is loaded.
    assert quietly.derandomize == settings.default.derandomize


@given(table=tables())
@quietly
def test_any_parquet_table_is_read_or_refused(table):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "q.parquet")
        pq.write_table(table, path)
        read_all(path, Path(folder))


@given(rows=st.lists(lines, max_size=4))
@example(rows=["[" * 100_000])
@example(rows=['{"idx": 1, "question": "a", "image": "q.jsonl"}', "\ufeff"])
@example(rows=['{"idx": ' + "9" * 5000 + "}"])
@quietly
def test_any_jsonl_file_is_read_or_refused(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "q.jsonl")
        path.write_bytes("\n".join(rows).encode("utf-8", "surrogatepass"))
        read_all(path, Path(folder))


names = st.sampled_from(["q.parquet", "q.jsonl", "q", "q.csv"])


@given(data=st.binary(max_size=60), cut=st.integers(0, 2000), name=names)
@example(data=b"", cut=0, name="q.parquet")
@example(data=b"", cut=0, name="q.jsonl")
@settings(quietly, max_examples=examples(50))
def test_any_bytes_in_the_place_of_a_dataset_end_validate_with_0_or_2(goldens, data, cut, name):
    """The models, which are the same each time, are not looked at."""
    whole = (goldens / "llava/dataset/questions.parquet").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(whole[: len(whole) - cut] + data)
        flags = {"instruct_model_path": goldens / "llava/instruct", "reward_model_path": goldens / "llava/reward"}
        flags |= {"dataset_path": path, "work_dir": Path(folder, "work")}
        with (
            contextlib.redirect_stderr(io.StringIO()) as told,
            contextlib.redirect_stdout(io.StringIO()),
            patch.object(weights, "is_installed", lambda: False),
        ):
            code = main.main(["validate", *(f"--{flag}={value}" for flag, value in flags.items())])
    assert code == (0 if not cut and not data and name != "q.jsonl" else 2)
    assert "Traceback" not in told.getvalue()


sound = st.floats(-30, 0, width=32)
answers = st.fixed_dictionaries(
    {
        "answer": st.text("ab .犬", max_size=9) | st.text("ab .犬", min_size=1, max_size=9) | texts | st.none(),
        # Of instruct and reward model.
        "logps": st.lists(st.tuples(sound, sound), min_size=1, max_size=4)
        | st.lists(st.tuples(sound, st.floats(width=32)), max_size=4),
    }
)
pixel = b"P6 1 1 255\n\0\0\0"


def world_of(folder: Path, asked: dict[int | str, tuple[str, list[dict]]]) -> World:
    ids, questions = list(asked), [question for question, _ in asked.values()]
    images = pa.array([{"bytes": pixel, "path": None}] * len(ids), image)
    pq.write_table(pa.table({"idx": ids, "question": questions, "image": images}), folder / "questions.parquet")
    rows = [
        {"idx": idx, "sample_index": number, "answer": answer["answer"]}
        | {"instruct": [one for one, _ in answer["logps"]], "reward": [other for _, other in answer["logps"]]}
        for idx, (_, found) in asked.items()
        for number, answer in enumerate(found)
    ]
    return World(folder, rows, unit_size=2)


asked = st.one_of(
    st.dictionaries(kind, st.tuples(texts, st.lists(answers, min_size=1, max_size=6)), min_size=1, max_size=5)
    for kind in (texts, st.integers(-(2**63), 2**63 - 1))
)


@given(asked=asked, seed=st.integers(0, 2**63 - 1), same=st.booleans())
# Shrinking what fails would take minutes of files.
@settings(quietly, max_examples=examples(25), phases=[Phase.explicit, Phase.generate])
def test_any_answers_end_in_a_dataset_that_keeps_the_rules(asked, seed, same):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = folder / "work"
        world = world_of(folder, asked)
        world.publish(work)
        funnel = world.pair(work, seed=seed, same_tokenizer=same, debug=True)
        pairs, rows = pairs_rows(work), dataset_rows(work)
        json.loads((work / "debug/rewards.json").read_text(), parse_constant=pytest.fail)
    kept = [pair for pair in pairs if pair["status"] == "kept"]
    assert funnel.written == len(rows) == len(kept)
    assert Counter(map(text_of, rows)) == Counter(map(text_of, kept))
    for pair in pairs:
        sides = pair["chosen"], pair["rejected"]
        assert sides[0] != sides[1]
        assert all(side.strip() and not any(marker in side for marker in MARKERS) for side in sides)
        assert all(math.isfinite(pair[f"{side}_{by}"]) for side in ("chosen", "rejected") for by in ("sum", "avg"))
        assert pair["chosen_sum"] >= pair["rejected_sum"]
        assert pair["chosen_avg"] >= pair["rejected_avg"]
    assert max(Counter(pair["idx"] for pair in kept).values(), default=0) <= 3
    differences = [count_words(pair["chosen"]) - count_words(pair["rejected"]) for pair in kept]
    assert sum(differences) <= 0.5 * len(differences)
    assert not any("<image>" in row["question"] for row in rows)


def text_of(row: dict) -> tuple:
    return row["idx"], row["chosen"], row["rejected"]


@given(asked=asked)
@settings(quietly, max_examples=examples(3))
def test_any_answers_end_in_a_report(asked):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = world_of(folder, asked)
        world.publish(folder / "work")
        funnel = world.pair(folder / "work")
        written = page.report_text(folder / "work", world.questions(), funnel, 64)
    # The data and the script; what data says opens no other.
    assert Page(written).tags.count("script") == 2


rows_of_pairs = st.lists(
    st.fixed_dictionaries(
        {
            "idx": st.integers(0, 2) | st.sampled_from("ab"),
            "sample_index": st.integers(0, 5),
            "answer": texts | st.none(),
            "sum": st.floats() | st.none(),
            "avg": st.floats() | st.none(),
        }
    ),
    max_size=12,
)


@given(rows=rows_of_pairs, rank=st.integers(0, 4), distance=st.integers(0, 40))
@quietly
def test_build_pairs_takes_any_rows_or_says_what_is_wrong(rows, rank, distance):
    try:
        found = build_pairs(rows, rank, distance, markers=MARKERS)
    except UserError:
        return
    for pair in found:
        assert pair.chosen_index != pair.rejected_index
        assert abs(pair.chosen_words - pair.rejected_words) < distance
        assert math.isfinite(pair.chosen_sum + pair.rejected_avg)
