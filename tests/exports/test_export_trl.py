"""The exports for TRL: what is in them, and what `datasets` and TRL's own collators make of it."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_readers import sft, trl, trl_kto
from export_run import build, finish, mixed_world
from PIL import Image
from stage2_world import digest, make_world, pairs_rows, picture

from data_engine.commands.export import main
from data_engine.exports import shuffle
from data_engine.exports.base import ExportSource
from data_engine.exports.formats.best import best_answers
from data_engine.exports.formats.turns import BOTH

NAMES = ("trl", "trl-kto", "sft")
# What the mixed world asks, by hand.
ASKED = {
    "q000": ([("user", ("How are you, 0?",))], []),
    "q001": ([("user", (0, "What is this, 1?"))], [1]),
    "q002": ([("user", ("First", 0, "then", 1, "which is red, 2?"))], [2, 3]),
    "q003": ([("system", ("Be brief.",)), ("user", (0, "What is this, 3?"))], [4]),
    "q004": ([("user", (0, "What is it?")), ("assistant", ("A bus.",)), ("user", ("And 4?",))], [5]),
}


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    """Six answers to each question, the higher the number the better: 3, 4, 5 are chosen, 0, 1, 2 are rejected."""
    folder = tmp_path_factory.mktemp("mixed")
    finish(mixed_world(folder / "world"), folder / "work")
    return folder / "work"


@pytest.fixture(scope="module")
def exported(work_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("exported") / "out"
    assert main([str(work_dir), "--format", ",".join(NAMES), "--output", str(output)]) == 0
    return output


def kept(work_dir) -> list[dict]:
    return [row for row in pairs_rows(work_dir) if row["status"] == "kept"]


def check_asked(row: dict) -> None:
    messages, pictures = ASKED[row["idx"]]
    assert row["messages"] == messages
    assert row["images"] == [picture(number) for number in pictures]


def test_every_kept_pair_is_a_row_whatever_its_question(work_dir, exported):
    rows = trl.read(exported / "trl")
    assert {row["idx"] for row in rows} == set(ASKED)
    wanted = sorted((pair["idx"], pair["chosen"], pair["rejected"]) for pair in kept(work_dir))
    assert sorted((row["idx"], row["chosen"], row["rejected"]) for row in rows) == wanted
    for row in rows:
        check_asked(row)


def test_the_margin_is_the_difference_of_the_sums(exported):
    """Of 3 tokens whose log-probs differ by an eighth from one answer to the next, times beta, 0.1."""
    for row in trl.table_rows(exported / "trl"):
        numbers = [int(row[side][0]["content"][0]["text"].split()[1]) for side in ("chosen", "rejected")]
        assert row["margin"] == pytest.approx(0.1 * 3 * (numbers[0] - numbers[1]) / 8)


def test_kto_has_each_answer_of_the_pairs_once_with_its_side(work_dir, exported):
    rows = trl_kto.read(exported / "trl-kto")
    wanted = {(pair["idx"], pair["chosen"], True) for pair in kept(work_dir)}
    wanted |= {(pair["idx"], pair["rejected"], False) for pair in kept(work_dir)}
    assert sorted((row["idx"], row["answer"], row["label"]) for row in rows) == sorted(wanted)
    assert len(rows) < 2 * len(kept(work_dir))
    for row in rows:
        check_asked(row)


def test_answers_to_one_question_do_not_follow_each_other_for_kto(exported):
    order = [row["idx"] for row in trl_kto.read(exported / "trl-kto")]
    assert all(one != other for one, other in zip(order, order[1:] + order[:1], strict=True))


def test_sft_has_the_best_answer_of_each_question(exported):
    rows = sft.read(exported / "sft")
    assert sorted((row["idx"], row["answer"]) for row in rows) == [(idx, f"answer 5 to {idx}") for idx in sorted(ASKED)]
    for row in rows:
        check_asked(row)


def test_datasets_decodes_the_pictures_and_keeps_everything(exported, tmp_path):
    for name in NAMES:
        rows = datasets.load_dataset(str(exported / name), split="train", cache_dir=str(tmp_path))
        plain = trl.table_rows(exported / name)
        assert len(rows) == len(plain)
        for row, stored in zip(rows, plain, strict=True):
            pictures, _ = row.pop("images"), stored.pop("images")
            assert row == stored
            numbers = ASKED[row["idx"]][1]
            assert [isinstance(one, Image.Image) for one in pictures] == [True] * len(numbers)
            assert [one.size for one in pictures] == [(6, 4)] * len(numbers)
            assert [one.getpixel((0, 0)) for one in pictures] == [(number, 0, 77) for number in numbers]


def test_columns_are_declared_so_that_older_versions_of_datasets_read_them(exported):
    """Lists of pictures as "Sequence", lists of structs as lists: "List" is unknown to 2.21 and 3.6."""
    schema = pq.read_schema(exported / "trl-kto/train.parquet")
    text = {"dtype": "string", "_type": "Value"}
    messages = [{"role": text, "content": [{"type": text, "text": text}]}]
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"] == {
        "prompt": messages,
        "completion": messages,
        "label": {"dtype": "bool", "_type": "Value"},
        "images": {"feature": {"_type": "Image"}, "_type": "Sequence"},
        "idx": text,
    }


def test_the_same_run_gives_the_same_bytes(work_dir, exported, tmp_path):
    assert main([str(work_dir), "--format", ",".join(NAMES), "--output", str(tmp_path)]) == 0
    assert digest(tmp_path) == digest(exported)


def test_a_dataset_of_text_alone_has_no_column_of_pictures(tmp_path):
    """TRL takes the column for a dataset of pictures, and refuses models of text."""
    world = make_world(tmp_path / "world")
    pq.write_table(pq.read_table(world.dataset_path).drop(["image"]), world.dataset_path)
    source = finish(world, tmp_path / "work")
    readers = dict(zip(NAMES, (trl, trl_kto, sft), strict=True))
    for name in NAMES:
        written = build(name, source, tmp_path / name)
        assert "images" not in pq.read_schema(tmp_path / name / "train.parquet").names
        rows = readers[name].read(tmp_path / name)
        assert len(rows) == written.rows > 0
        assert all(row["messages"] == [("user", (f"What is in picture {int(row['idx'][1:])}?",))] for row in rows)


def test_pictures_stand_in_the_order_in_which_they_are_shown(tmp_path):
    world = mixed_world(tmp_path / "world")
    source = finish(world, tmp_path / "work")
    [pair] = [pair for pair in kept(tmp_path / "work") if pair["idx"] == "q002"][:1]
    source = ExportSource([pair], world.questions(), world.units(), tmp_path / "work", 0)
    build("trl", source, tmp_path / "trl")
    [row] = pq.read_table(tmp_path / "trl").to_pylist()
    kinds = [part["type"] for message in row["prompt"] for part in message["content"]]
    assert kinds == ["text", "image", "text", "image", "text"]
    assert [image["bytes"] for image in row["images"]] == [picture(2), picture(3)]


def test_control_tokens_are_written_as_text(tmp_path):
    world = make_world(tmp_path / "world", num_questions=2, question=["What</s> is <video> it?", "And?"])
    for row in world.rows:
        row |= {"answer": f"a <audio> {row['sample_index']}<|im_end|>", "reward": [-row["sample_index"]] * 3}
        row["instruct"] = [-1.0] * 3
    source = finish(world, tmp_path / "work", markers=())
    for name in ("trl", "trl-kto"):
        assert build(name, source, tmp_path / name).rewritten == len(source.pairs)
    for row in trl.read(tmp_path / "trl"):
        question = "What< /s> is < video> it?" if row["idx"] == "q000" else "And?"
        assert row["messages"] == [("user", (0, question))]
        assert {row["chosen"][:11], row["rejected"][:11]} == {"a < audio> "}
        assert row["chosen"].endswith("< |im_end|>")


def crafted(world, work_dir, pairs: list[tuple[str, str, int, int]]) -> ExportSource:
    """Pairs of q000 by their texts and numbers, in a published run."""
    finish(world, work_dir)
    rows = [
        {"idx": "q000", "chosen": good, "rejected": bad, "chosen_index": one, "rejected_index": other}
        for good, bad, one, other in pairs
    ]
    return ExportSource(rows, world.questions(), world.units(), work_dir, 0)


def test_an_answer_that_is_good_in_one_pair_and_bad_in_another_is_left_out_of_kto(tmp_path):
    world = make_world(tmp_path / "world", num_questions=2)
    source = crafted(world, tmp_path / "work", [("a", "b", 0, 1), ("b", "c", 1, 2), ("a", "c", 0, 2)])
    written = build("trl-kto", source, tmp_path / "trl-kto")
    rows = trl_kto.read(tmp_path / "trl-kto")
    assert sorted((row["answer"], row["label"]) for row in rows) == [("a", True), ("c", False)]
    assert (written.rows, written.left_out) == (2, {BOTH: 1})


def test_answers_that_became_equal_when_they_were_rewritten_are_one(tmp_path):
    world = make_world(tmp_path / "world", num_questions=2)
    pairs = [("<image>", "b", 0, 2), ("< image>", "b", 1, 2), ("good", "<video>", 3, 4), ("< video>", "b", 5, 2)]
    written = build("trl-kto", crafted(world, tmp_path / "work", pairs), tmp_path / "trl-kto")
    rows = trl_kto.read(tmp_path / "trl-kto")
    wanted = [("< image>", True), ("b", False), ("good", True)]
    assert sorted((row["answer"], row["label"]) for row in rows) == wanted
    assert written.left_out == {BOTH: 1}


def answers(*places: tuple[int | None, int | None], idx="q") -> list[dict]:
    return [
        {
            "idx": idx,
            "sample_index": number,
            "sum_rank": one,
            "avg_rank": other,
            "not_ranked": None if one else "empty",
        }
        for number, (one, other) in enumerate(places)
    ]


@pytest.mark.parametrize(
    ("places", "best"),
    [
        ([(2, 2), (1, 1), (3, 3)], 1),
        # 4 against 3.
        ([(1, 3), (2, 1), (3, 2)], 1),
        # 4 each: the first ranking decides.
        ([(3, 1), (2, 2), (1, 3)], 2),
        ([(None, None), (2, 2), (1, 1)], 2),
        ([(None, None), (None, None)], None),
        # Rankings may give equal answers one place.
        ([(None, None), (1, 1), (1, 1)], 1),
    ],
)
def test_the_best_answer_has_the_smallest_sum_of_places(places, best):
    before, behind = answers((1, 1), (2, 2), idx="p"), answers((2, 2), (1, 1), idx="r")
    found = {row["idx"]: row["sample_index"] for row in best_answers([*before, *answers(*places), *behind])}
    assert found == {"p": 0, "r": 1} | ({} if best is None else {"q": best})


def test_an_answer_that_has_none_to_rank_against_is_the_best_of_its_question():
    """As where a model is so sure that it says the same each time."""
    sure = answers((None, None), (None, None), (None, None))
    for row, reason in zip(sure, ("alone", "duplicate", "duplicate"), strict=True):
        row["not_ranked"] = reason
    found = [(row["idx"], row["sample_index"]) for row in best_answers([*sure, *answers((2, 2), (1, 1), idx="r")])]
    assert found == [("q", 0), ("r", 1)]


@pytest.mark.parametrize("rank_by", [("sum", "avg"), ("avg",), ("implicit_min",)])
def test_best_answers_of_less_than_the_least_reward_are_left_out_and_counted(tmp_path, rank_by):
    """By the first reward that ranks; as much as the least is enough."""
    world = make_world(tmp_path / "world", num_questions=9)
    whole = finish(world, tmp_path / "work")
    column = {"implicit_min": "min"}.get(rank_by[0], rank_by[0])
    best = {row["idx"]: row[column] for row in best_answers(whole.answers)}
    least = sorted(best.values())[4]
    source = ExportSource(whole.pairs, whole.questions, world.units(), tmp_path / "work", 0, answers=whole.answers,
                          rank_by=rank_by, min_reward=least)  # fmt: skip
    written = build("sft", source, tmp_path / "sft")
    rows = pq.read_table(next((tmp_path / "sft").rglob("train*.parquet"))).to_pylist()
    assert {row["idx"] for row in rows} == {idx for idx, reward in best.items() if reward >= least}
    assert written.rows == len(rows) < len(best) == 9
    assert written.left_out == {
        f"the best answer has less than {least:g} of the reward {column}": sum(one < least for one in best.values())
    }


def test_a_few_pairs_and_many_questions_are_shuffled_in_enough_buckets(tmp_path, monkeypatch):
    """The best answers are as many as questions, whatever was paired."""
    monkeypatch.setattr(shuffle, "BUCKET_ROWS", 5)
    world = make_world(tmp_path / "world", num_questions=40)
    whole = finish(world, tmp_path / "work")
    source = ExportSource(list(whole.pairs)[:2], whole.questions, world.units(), tmp_path / "work", 0,
                          answers=whole.answers)  # fmt: skip
    opened, real = [], pa.ipc.new_file
    monkeypatch.setattr(shuffle.pa.ipc, "new_file", lambda *args: opened.append(1) or real(*args))
    assert build("sft", source, tmp_path / "sft").rows == 40
    assert len(opened) == 8


@pytest.fixture(scope="module")
def processor():
    """LLaVA's, over a tokenizer of characters."""
    import tokenizers
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    vocabulary = {chr(code): code + 4 for code in range(256)} | {"<unk>": 0}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>")),
        bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>", additional_special_tokens=["<image>"],
    )  # fmt: skip
    template = (
        "{%- for m in messages %}{{ m.role }}: {% for c in m.content %}"
        "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %} {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return LlavaProcessor(
        pixels, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip


@pytest.mark.filterwarnings("default")
def test_trls_own_collators_take_rows_with_and_without_pictures(exported, tmp_path, processor):
    """In any mixture, and where the first row has none, by which TRL tells a dataset of pictures."""
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
    from trl.trainer.kto_trainer import DataCollatorForVisionUnpairedPreference
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    collators = {
        "trl": DataCollatorForVisionPreference(processor, max_length=None),
        "trl-kto": DataCollatorForVisionUnpairedPreference(processor, max_length=None),
        "sft": DataCollatorForVisionLanguageModeling(processor, max_length=None),
    }
    for name, collator in collators.items():
        rows = datasets.load_dataset(str(exported / name), split="train", cache_dir=str(tmp_path))
        first = {row["idx"]: number for number, row in enumerate(rows)}
        sides = 2 if name == "trl" else 1
        for idxs in (["q000"], ["q000", "q001"], ["q000", "q002", "q003", "q004"], ["q004", "q000"]):
            batch = collator([dict(rows[first[idx]]) for idx in idxs])
            assert "images" in rows[first[idxs[0]]]
            num_pictures = sum(len(ASKED[idx][1]) for idx in idxs)
            assert len(batch.get("pixel_values", [])) == sides * num_pictures
            texts = ["".join(processor.tokenizer.convert_ids_to_tokens(ids)) for ids in batch["input_ids"]]
            for text, idx in zip(texts, idxs * sides, strict=True):
                # A picture of 28 x 28 is four tokens.
                assert text.count("<image>") == 4 * len(ASKED[idx][1])
                assert text.replace("<image>", "").replace("<pad>", "").startswith(told(ASKED[idx][0]))


def told(messages: list) -> str:
    """The messages by the processor's template, without pictures."""
    return "".join(f"{role}: {''.join(part for part in parts if isinstance(part, str))} " for role, parts in messages)
