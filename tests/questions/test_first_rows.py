"""What a person is told of the first rows where none of them can be used."""

from data_engine.questions.first_rows import most_frequent, refusal

MISSING = [f'image path "{name}.jpg" is not a readable file under image_root' for name in "abc"]


def test_reasons_that_differ_in_the_name_of_a_file_alone_are_one_kind_told_by_its_first():
    reasons = ["question is null", *MISSING, "question is null"]
    assert most_frequent(reasons) == (MISSING[0], 3)
    assert str(refusal(reasons)) == (
        "none of the first 5 rows of --dataset_path can be used; the most frequent reason (3 rows): " + MISSING[0]
    )


def test_a_single_row_is_one_row():
    assert str(refusal(["question is null"])) == (
        "the first row of --dataset_path cannot be used; the most frequent reason (1 row): question is null"
    )
