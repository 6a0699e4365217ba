"""Which token of an answer wrote what, and d_t of each: against values by hand; never a wrong alignment."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
import tokenizers
from report_page import Page
from stage2_world import make_world, pairs_rows, publish
from tokenizers import decoders, models, pre_tokenizers

import data_engine
from data_engine import schemas
from data_engine.models.tokenizer import SentencePieceTokenizer
from data_engine.reporting import heat
from data_engine.reporting.answers import read_answers
from data_engine.reporting.gallery import heat_json
from data_engine.reporting.heat import NoHeat, Pieces, Span
from data_engine.reporting.page import report_text
from data_engine.store.units import UnitResult

DEMO = Path(data_engine.__file__).parent / "demo/checkpoints/instruct"
# Pieces of the toy tokenizer below: bytes of a text, as byte-level BPE spells them; 5 is the end token, and 6 an added
# one that is text.
PIECES = ["A", "Ġcat", "Ã", "©", "s", "</s>"]
A_CAT, E_ACUTE, END, ADDED = [0, 1], [2, 3], 5, 6


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder with a byte-level tokenizer of seven tokens; é takes two of them."""
    tokenizer = tokenizers.Tokenizer(models.BPE({piece: id for id, piece in enumerate(PIECES)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.add_tokens([">A"])
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    return tmp_path / "model"


def pieces_of(folder, ids):
    [decode] = heat.decoders(folder)
    return Pieces(decode).of(ids)


def test_each_token_has_the_text_that_it_adds(folder):
    assert pieces_of(folder, [0, 1, 4, END]) == [("A", 1), (" cat", 1), ("s", 1), ("", 1)]


def test_an_added_token_that_is_not_special_is_text(folder):
    assert pieces_of(folder, [0, ADDED, 1]) == [("A", 1), (">A", 1), (" cat", 1)]


def test_tokens_that_write_one_character_together_are_one_piece(folder):
    assert pieces_of(folder, [0, *E_ACUTE, 4]) == [("A", 1), ("é", 2), ("s", 1)]


def test_a_character_that_never_ends_is_kept_as_it_is_decoded(folder):
    assert pieces_of(folder, [0, 2]) == [("A", 1), ("\ufffd", 1)]


def test_ids_that_come_to_no_character_are_decoded_a_few_at_a_time(folder):
    [decode] = heat.decoders(folder)
    lengths = []
    pieces = Pieces(lambda ids: lengths.append(len(ids)) or decode(ids)).of([0, *[2] * 1000, 1, END])
    assert "".join(text for text, _ in pieces) == "A" + "\ufffd" * 1000 + " cat"
    assert sum(count for _, count in pieces) == 1003
    # The last piece and the next one.
    assert max(lengths) <= 2 * heat.MOST_TOGETHER


def test_pieces_of_sentencepiece_join_to_its_own_text():
    tokenizer = SentencePieceTokenizer(DEMO / "tokenizer.model")
    text = "There is a red circle, and naïve 猫 ?"
    ids = [*tokenizer.encode(text), tokenizer.eos]
    pieces = Pieces(tokenizer.decode).of(ids)
    assert "".join(piece for piece, _ in pieces) == tokenizer.decode(ids) == text
    assert sum(count for _, count in pieces) == len(ids)
    assert pieces[-1] == ("", 1)
    # A special token between two others takes no space away.
    for place in range(len(ids)):
        pieces = Pieces(tokenizer.decode).of([*ids[:place], tokenizer.eos, *ids[place:]])
        assert "".join(piece for piece, _ in pieces) == text


def test_differences_are_the_reward_models_log_probs_less_the_instruct_models():
    assert heat.differences([-1.0, -2.0], [-0.5, -4.0], 2) == [0.5, -2.0]


@pytest.mark.parametrize(
    ("instruct", "reward", "why"),
    [
        ([-1.0], None, "a model gave it no log-probs"),
        ([-1.0], [-1.0, -1.0], "another number of tokens"),
        ([-1.0, -1.0], [-1.0, -1.0], "another number of tokens"),
        ([-1.0, -1.0, -1.0], [-1.0, -math.inf, -1.0], "no finite number"),
    ],
)
def test_where_a_model_did_not_score_exactly_these_tokens_there_is_no_heat(instruct, reward, why):
    with pytest.raises(NoHeat, match=why):
        heat.differences(instruct, reward, 3 if len(instruct) != 1 or reward is None else 1)


def test_spans_join_to_the_answer_and_tokens_of_one_character_are_summed():
    pieces = [(" A", 1), ("é", 2), ("s ", 1), ("", 1)]
    found = heat.spans(pieces, [0.5, 0.25, -1.0, 2.0, -3.0], "Aés")
    assert found == [Span("A", 0.5), Span("é", -0.75, 2), Span("s", 2.0), Span("", -3.0)]


@pytest.mark.parametrize("answer", ["A cat", "A dogs", "cats", ""])
def test_pieces_that_do_not_join_to_the_answer_give_no_heat(answer):
    with pytest.raises(NoHeat, match="do not join"):
        heat.spans([("A", 1), (" cats", 1)], [0.5, 0.5], answer)


def test_the_mark_of_a_thought_may_share_the_first_token_and_no_other():
    assert heat.spans([(">\n\nA", 1), (" cat", 1)], [1.0, 2.0], "A cat", cut=True) == [
        Span("A", 1.0), Span(" cat", 2.0)
    ]  # fmt: skip
    with pytest.raises(NoHeat):
        heat.spans([(">", 1), ("\n", 1), ("A cat", 1)], [1.0, 2.0, 3.0], "A cat", cut=True)
    with pytest.raises(NoHeat):
        heat.spans([(">\n\nA", 1), (" cat", 1)], [1.0, 2.0], "A cat", cut=False)


def test_sizes_are_in_the_units_of_javascripts_strings():
    assert heat_json([Span("a𝄞", 0.5), Span("é", -0.25, 2)]) == {
        "sizes": [3, 1], "values": [0.5, -0.25], "several": {"1": 2}
    }  # fmt: skip


def heated(folder, tmp_path, sampled=None):
    """The pairs of a page about a run of real token ids; `sampled` may change the rows of its answers."""
    world = make_world(tmp_path, num_questions=2, num_answers=4, unit_size=8)
    for row in world.rows:
        count = row["sample_index"] % 4 + 1
        row["token_ids"] = [0, *[1] * count, END]
        row["answer"] = "A" + " cat" * count
        row["instruct"] = [-1.0] * (count + 2)
        row["reward"] = [-1.0 + 0.125 * place + 0.01 * count for place in range(count + 2)]
    rows = [{**row, "finish_reason": "stop", "thought": None} for row in world.rows]
    (sampled or (lambda rows: None))(rows)
    work, kind = tmp_path / "work", pa.string()
    digests = [question.digest for question in world.questions().rows(range(2))]
    publish(work, "sampled_answer", 0, UnitResult(schemas.sampled_answers(rows, kind), [], rows=digests))
    for role in ("instruct", "reward"):
        scored = [{"idx": row["idx"], "sample_index": row["sample_index"], "token_logps": row[role], "sum": 0.0,
                   "mean": 0.0} for row in world.rows]  # fmt: skip
        publish(work, f"{role}_logps", 0, UnitResult(pa.Table.from_pylist(scored, schemas.logps(kind)), []))
    (work / "run.json").write_text(json.dumps({"config": {"instruct_model_path": str(folder)}, "bound": {}}))
    return world, work, world.pair(work, distance=100)


def page_of(made):
    world, work, funnel = made
    return Page(report_text(work, world.questions(), funnel)).data


def test_the_page_has_the_difference_of_each_token_of_each_answer(folder, tmp_path):
    data = page_of(heated(folder, tmp_path))
    assert data["no_heat"] is None
    assert data["pairs"]
    for pair in data["pairs"]:
        for text, own in zip((pair["chosen"], pair["rejected"]), pair["heat"], strict=True):
            count = text.count(" cat")
            assert own["sizes"] == [1, *[4] * count, 0]
            assert own["values"] == pytest.approx(
                [0.125 * place + 0.01 * count for place in range(count + 2)], abs=1e-4
            )


def test_an_answer_behind_a_thought_has_the_heat_of_its_own_tokens(folder, tmp_path):
    """Its first token has the end of the thought's mark in it."""

    def think(rows):
        for row in rows:
            row |= {"token_ids": [1, 4, ADDED, *row["token_ids"][1:]], "thought": " cats", "thought_tokens": 2}

    for pair in page_of(heated(folder, tmp_path, think))["pairs"]:
        for text, own in zip((pair["chosen"], pair["rejected"]), pair["heat"], strict=True):
            count = text.count(" cat")
            assert own["sizes"] == [1, *[4] * count, 0]
            assert own["values"][0] == pytest.approx(0.01 * count, abs=1e-4)


def test_an_answer_whose_ids_say_something_else_has_no_heat_and_the_others_have(folder, tmp_path):
    def change(rows):
        for row in rows:
            if row["sample_index"] == 3:
                row["token_ids"] = [0, 1, 1, 1, 4, END]

    pairs = page_of(heated(folder, tmp_path, change))["pairs"]
    for pair in pairs:
        for index, own, why in zip(pair["answers"], pair["heat"], pair["no_heat"], strict=True):
            assert (own is None) == (index == 3)
            assert (why is None) == (index != 3)
    assert any(3 in pair["answers"] for pair in pairs)


def test_an_answer_that_was_sampled_anew_since_the_pair_was_made_has_no_heat_and_says_why(folder, tmp_path):
    made = heated(folder, tmp_path)
    rows = [row | {"token_ids": [0, *row["token_ids"]], "answer": "A" + row["answer"], "finish_reason": "stop"}
            for row in made[0].rows]  # fmt: skip
    for stage in ("sampled_answer", "instruct_logps", "reward_logps"):
        (made[1] / stage / "unit-00000.parquet").unlink()
    publish(
        made[1], "sampled_answer", 0, UnitResult(pa.Table.from_pylist(rows, schemas.sampled_answer(pa.string())), [])
    )
    for role in ("instruct", "reward"):
        scored = [{"idx": row["idx"], "sample_index": row["sample_index"], "token_logps": [-1.0, *row[role]],
                   "sum": 0.0, "mean": 0.0} for row in rows]  # fmt: skip
        publish(made[1], f"{role}_logps", 0, UnitResult(pa.Table.from_pylist(scored, schemas.logps(pa.string())), []))
    pairs = page_of(made)["pairs"]
    assert {why for pair in pairs for why in pair["no_heat"]} == {"it was sampled anew since the pair was made"}


def test_answers_that_were_given_as_text_have_no_heat(folder, tmp_path):
    pairs = page_of(heated(folder, tmp_path, lambda rows: [row.update(token_ids=None) for row in rows]))["pairs"]
    assert {why for pair in pairs for why in pair["no_heat"]} == {
        "it was given as text, and each model read it as tokens of its own"
    }


def test_log_probs_of_other_answers_than_those_that_are_there_give_no_heat(folder, tmp_path):
    made = heated(folder, tmp_path)
    path = made[1] / "sampled_answer/unit-00000.parquet"
    path.unlink()
    table = pa.Table.from_pylist([{**row, "finish_reason": "length"} for row in made[0].rows],
                                 schemas.sampled_answer(pa.string()))  # fmt: skip
    publish(made[1], "sampled_answer", 0, UnitResult(table, []))
    assert {own for pair in page_of(made)["pairs"] for own in map(str, pair["heat"])} == {"None"}


def test_without_a_tokenizer_the_page_says_so_once(folder, tmp_path):
    made = heated(folder, tmp_path)
    (folder / "tokenizer.json").unlink()
    data = page_of(made)
    assert data["no_heat"] == "no tokenizer.json and no tokenizer.model that can be read is in model"
    assert {str(pair["heat"]) for pair in data["pairs"]} == {"[None, None]"}
    assert pairs_rows(made[1])


def test_heat_is_of_the_models_that_are_compared(folder, tmp_path):
    _, work, _ = heated(folder, tmp_path)
    pieces, key = [Pieces(decode) for decode in heat.decoders(folder)], ("q000", 0)
    ways = [("instruct", "reward"), ("reward", "instruct")]
    one, other = (read_answers(work, [key], pieces, compared).spans[key] for compared in ways)
    assert [span.difference for span in one] == [-span.difference for span in other]
    assert any(span.difference for span in one)


def test_the_tokenizer_of_a_model_that_shares_it_does_where_the_instruct_model_is_gone(folder, tmp_path):
    made = heated(folder, tmp_path)
    config = {"instruct_model_path": str(tmp_path / "gone"), "reward_model_path": str(folder)}
    (made[1] / "run.json").write_text(json.dumps({"config": config, "bound": {}}))
    assert page_of(made)["no_heat"] is None


def test_models_of_different_tokenizers_have_no_heat(folder, tmp_path):
    """Whatever a later start with other models says of its own."""
    world, work, _ = heated(folder, tmp_path)
    funnel = world.pair(work, distance=100, same_tokenizer=False)
    (work / "run.json").write_text(
        json.dumps({"config": {"instruct_model_path": str(folder)}, "bound": {}, "same_tokenizer": True})
    )
    assert "different tokens" in page_of((world, work, funnel))["no_heat"]
