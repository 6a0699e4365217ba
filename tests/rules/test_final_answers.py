"""The rule final_answer on whole answers: which text of one counts, and how columns are compared with it."""

from decimal import Decimal

import pytest

from data_engine.rules.final_answer import extracted, final_answer

NAN = float("nan")


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        ("Final Answer: 5", "5"), ("So it is.\nFinal answer: 5 cm.\nBye.", "5 cm."), ("FINAL ANSWER:5", "5"),
        ("**Final Answer:** 5", "5"), ("Final Answer:\n\n**5**\n", "5"), ("### Final Answer\n5", "5"),
        ("Final Answer：5", "5"), ("The final answer is 7", "7"), ("the final answer is: 7", "7"),
        ("Final Answer: 3\nNo.\nFinal Answer: 4", "4"), ("Final Answer: 3 Final Answer: 4", "4"),
        (r"\boxed{3}, so Final Answer: 4", "4"), (r"Final Answer: 4, or \boxed{3}", "3"), (r"\boxed{3} \boxed{4}", "4"),
        (r"Final Answer: $\boxed{\frac{1}{2}}$", r"\frac{1}{2}"), (r"\boxed {5}", "5"), (r"\fbox{5}", "5"),
        ("Final Answer: *cat*.", "cat"), ("**Final Answer:** `cat`.", "cat"), ("Final Answer: _a cat_!", "a cat"),
        ("Final Answer: 3\nFinal Answer:", "3"), (r"\boxed{3} \boxed{", "3"), ("Final Answer: (B) cat", "(B) cat"),
        # The next line has the formula that the first one opens.
        ("Final Answer:\n\n$$\n5\n$$", "5"), ("**Final Answer:**\n\\[\n5\n\\]", "5"),
        ("The final answer is\n\\(", None),
        # As models that were trained to think in <think> and to answer in <answer> write.
        ("<think>5?</think><answer>B</answer>", "B"), ("<answer>\n B. cat\n</answer>", "B. cat"),
        ("<ANSWER>5</ANSWER>.", "5"),
        (r"<answer>It is \boxed{5}.</answer>", "5"), ("<answer>The final answer is 5</answer>", "5"),
        ("Final Answer: <answer>5</answer>", "5"), ("<answer></answer>", None), ("<answer>5", "5"),
        ("It is 5.", None), ("", None), ("Final Answer:", None), (r"\boxed{}", None), (r"\boxed{", None),
        ("This is not final. Answer: 5", None),
    ],
)  # fmt: skip
def test_the_final_answer_of_a_text(answer, final):
    assert extracted(answer) == final


@pytest.mark.parametrize(
    ("right", "scores"),
    [
        ("4", [1, 0, 0]), (4, [1, 0, 0]), (4.0, [1, 0, 0]), ("#### no mark: 4", [0, 0, 0]),
        ("Final Answer: 4", [1, 0, 0]), ("2 and 2.\nFinal Answer: 4", [1, 0, 0]), (r"So $\boxed{4}$ it is", [1, 0, 0]),
        ([4, 5], [1, 1, 0]), (["four"], [1, 0, 0]), (None, [None] * 3), ("  ", [None] * 3), ([], [None] * 3),
        ([None], [None] * 3), (NAN, [None] * 3), ([NAN, 4], [1, 0, 0]), ('["four", "6"]', [1, 0, 0]),
        ("[]", [None] * 3), ("[4, 5]", [0, 0, 0]), (Decimal("4.0"), [1, 0, 0]),
    ],
)  # fmt: skip
def test_an_answer_is_right_wrong_or_not_judged(right, scores):
    assert final_answer({"answer": right}, ["Final Answer: 4", r"\boxed{5}", "4"]) == scores


def test_marks_of_markdown_may_end_where_the_final_answer_does():
    assert final_answer({"answer": "30"}, ["Final Answer: The answer is **30**", "**Final Answer: 30**"]) == [1, 1]


def test_a_column_may_have_what_looks_like_marks_of_markdown():
    for right in ("__init__", "z^*", "*args"):
        said = [f"Final Answer: {right}", f"So it is \\boxed{{{right}}}.", "Final Answer: cat"]
        assert final_answer({"answer": right}, said) == [1, 1, 0]
    assert final_answer({"answer": "A*"}, ["Final Answer: A"]) == [0]
