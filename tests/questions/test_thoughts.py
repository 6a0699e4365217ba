"""Where thoughts end, in texts and among token ids. Expected values are written by hand."""

import pytest

from data_engine.questions.thoughts import KNOWN, Marks, Parts, ReadAnswer, cut, read

CUTS = {
    "Two cats.": Parts("Two cats.", None),
    "": Parts("", None),
    "<think>Hm.</think>Two": Parts("Two", "<think>Hm.</think>"),
    # The prompt opened it.
    "Hm.\n</think>\n\nTwo\n": Parts("Two\n", "Hm.\n</think>\n\n"),
    "<think>a</think>One? <think>b</think>Two": Parts("Two", "<think>a</think>One? <think>b</think>"),
    "<think>Hm": Parts(None, "<think>Hm"),
    "<think>a</think>One? <think>b": Parts(None, "<think>a</think>One? <think>b"),
    "<think>Hm</think>": Parts("", "<think>Hm</think>"),
    "<think>Hm</think> \n": Parts("", "<think>Hm</think> \n"),
    "◁think▷Hm◁/think▷Two": Parts("Two", "◁think▷Hm◁/think▷"),
    "[THINK]Hm[/THINK]Two": Parts("Two", "[THINK]Hm[/THINK]"),
    # Behind the last of any marks.
    "<think>a</think>b◁/think▷Two": Parts("Two", "<think>a</think>b◁/think▷"),
    "<thinking>Two": Parts("<thinking>Two", None),
}


@pytest.mark.parametrize("text", CUTS)
def test_a_text_is_cut_behind_its_last_thought(text):
    assert cut(text) == CUTS[text]


def test_a_thought_that_the_prompt_opened_needs_an_end():
    assert cut("Two cats.", opened=True) == Parts(None, "Two cats.")
    assert cut("", opened=True) == Parts(None, "")
    assert cut("Hm</think>Two", opened=True) == Parts("Two", "Hm</think>")


def test_marks_of_a_models_own_count():
    own = Marks("<|START_THINKING|>", "<|END_THINKING|>")
    assert cut("a<|END_THINKING|>b", [own, *KNOWN]) == Parts("b", "a<|END_THINKING|>")
    assert cut("a<|END_THINKING|>b") == Parts("a<|END_THINKING|>b", None)


class Spelled:
    """A tokenizer of these pieces; those in angle brackets with a bar are special."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, ids) -> str:
        return "".join(self.pieces[number] for number in ids)

    def text(self, ids) -> str:
        return "".join(self.pieces[number] for number in ids if not self.pieces[number].startswith("<|")).strip()

    def read(self, *pieces: str, **more) -> ReadAnswer:
        return read([self.pieces.index(piece) for piece in pieces], self.decode, self.text, **more)


SINGLE = Spelled("<think>", "</think>", "Hm", "\n\n", "Two", " cats", "<|end|>")
# As a byte-pair tokenizer without tokens for the marks spells them; the end of one may run on into the answer.
SPLIT = Spelled("<", "think", ">", "</", ">\n\n", ">The", "Hm", "Two", " cat", "<|end|>")
SPECIAL = Spelled("<|START_THINKING|>", "<|END_THINKING|>", "Hm", "Two", "<|end|>")


def test_the_counted_tokens_are_those_behind_a_mark_of_one_token():
    found = SINGLE.read("<think>", "Hm", "</think>", "\n\n", "Two", " cats", "<|end|>")
    assert found == ReadAnswer("Two cats", "<think>Hm</think>\n\n", 3)
    found = SINGLE.read("<think>", "Hm", "</think>", "Two", "<think>", "Hm", "</think>", " cats")
    assert found == ReadAnswer("cats", "<think>Hm</think>Two<think>Hm</think> ", 7)
    assert SINGLE.read("Two", " cats", "<|end|>") == ReadAnswer("Two cats")


def test_the_counted_tokens_are_those_behind_a_mark_of_several_tokens():
    assert SPLIT.read("<", "think", ">", "Hm", "</", "think", ">", "Two", "<|end|>") == ReadAnswer(
        "Two", "<think>Hm</think>", 7
    )
    # White space in the mark's last token is no answer.
    assert SPLIT.read("Hm", "</", "think", ">\n\n", "Two", opened=True) == ReadAnswer("Two", "Hm</think>\n\n", 4)
    # A token that has the beginning of the answer counts.
    assert SPLIT.read("Hm", "</", "think", ">The", " cat", "<|end|>", opened=True) == ReadAnswer(
        "The cat", "Hm</think>", 3
    )


def test_special_tokens_are_marks_though_they_are_no_text():
    own = (Marks("<|START_THINKING|>", "<|END_THINKING|>"), *KNOWN)
    ids = ("<|START_THINKING|>", "Hm", "<|END_THINKING|>", "Two", "<|end|>")
    assert SPECIAL.read(*ids, marks=own) == ReadAnswer("Two", "<|START_THINKING|>Hm<|END_THINKING|>", 3)
    assert SPECIAL.read(*ids[:2], marks=own) == ReadAnswer(None, "<|START_THINKING|>Hm", 2)


def test_of_an_unfinished_thought_no_token_counts():
    assert SINGLE.read("<think>", "Hm", "Two") == ReadAnswer(None, "<think>HmTwo", 3)
    assert SINGLE.read("Hm", "Two", opened=True) == ReadAnswer(None, "HmTwo", 2)
    # A letter that is not whole yet ends no mark.
    assert SPLIT.read("</", "think", opened=True) == ReadAnswer(None, "</think", 2)


def test_a_thought_without_an_answer_leaves_an_empty_text():
    assert SINGLE.read("Hm", "</think>", opened=True) == ReadAnswer("", "Hm</think>", 2)
    assert SINGLE.read("Hm", "</think>", "\n\n", "<|end|>", opened=True).text == ""


def test_a_long_thought_is_read_in_few_decodings():
    calls = 0

    def decode(ids) -> str:
        nonlocal calls
        calls += 1
        return SINGLE.decode(ids)

    ids = [2] * 8000 + [1] + [4] * 191
    assert read(ids, decode, SINGLE.text)[1:] == ("Hm" * 8000 + "</think>", 8001)
    assert calls < 20
