r"""The built-in rules by tables: what an answer says, what is right, and whether the two are the same."""

import time
from fractions import Fraction

import pytest

from data_engine.rules import BUILT_IN, contains
from data_engine.rules.final_answer import final_answer
from data_engine.rules.values import equal, number_of

NAN = float("nan")
# Right, and answers that are the same.
SAME = {
    # Fractions, decimals and mixed numbers, in any writing.
    "1/2": ["1/2", "½", r"\frac{1}{2}", r"\dfrac12", r"\tfrac{1}2", "0.5", ".5", "0.50", "2/4", "1 / 2", "1⁄2"],
    "1 1/2": ["3/2", "1.5", "1½", "1 ½", r"1\frac{1}{2}", r"1 \frac{1}{2}"],
    "-1/2": ["−½", "−0.5", r"-\frac{1}{2}", "- 1/2"],
    "0.1": ["0.10000000000000001", "1/10"],
    # A unit counts where both have one; nothing is converted.
    "5": ["5", "5.", "5.0", "+5", "5 cm", "5cm", "$5.00", "five", "Five.", "5 apples", "(5)", "x = 5",
          "The answer is 5."],
    "5 cm": ["5", "5cm", "5 CM", "5 centimeters", "5 centimetres", r"5\text{ cm}", r"5\,\mathrm{cm}", "5.0 cm"],
    "$5": ["5", "5 dollars", "$5", "5 USD", r"\$5"],
    "90°": ["90", "90 degrees", r"90^\circ", r"90^{\circ}", "90 deg"],
    "5 m^2": ["5 m²", "5 m^2", "5"],
    "3 feet": ["3 ft", "3 foot"],
    "5 km/h": ["5 km/h", "5"],
    "9": ["9kWh", "9µm", "9 J/(kg·K)", "9 s^-1", "9°C", "9 °f", "9 N", "9A", "9 p.m.", "9th", "9 t-shirts",
          "9 apple(s)", "9 third graders", "9 cups a day", "9个", "9 times", "9 L/100km", "9 $/kg",
          "9º", "9 ºC", "9 sq. ft.", "9 ft. tall", "9 fl. oz.", "9 U.S. dollars", "9 a.m. Monday", "9 meters squared",
          "9 feet cubed", "9 M HCl", "9 H atoms", "9 B cells", "9°E", "9 S/m", "9 m³/d", "9kgs", "9ltr", "9GPa", "9pF",
          "9Ah", "9lx", "9Sv", "9INR", "9pcs", "9 J/g°C", "9 J/(g·°C)", "9 J/g-K", "9 N-m", "9 USB-C ports"],
    # Whatever stands behind both, numbers before the same are the same.
    "1080p": ["1080.0p"],
    "2x + 1": ["2.0x + 1"],
    "0.5 M": ["0.50 M", "0.5M"],
    "12 cm squared": ["12.0 cm squared", "12 cm^2"],
    "2500 N-m": ["2.5e3 N-m"],
    "5 billion": ["5bn", "5 bn"],
    # What multiplies a number is a part of it, as percent is.
    "2000000": ["2 million", "2 Million", "two million", "2M", "2 thousand thousand", "$2 million", "2 million people"],
    "2 million": ["2000000", "2,000,000", "2M", "$2,000,000"],
    "$2.5 billion": ["2.5B", "2500 million dollars"],
    "10000": ["10K", "10k", "10 thousand", "10k steps", "1万", "1만"],
    "300 K": ["300", "300K"],
    "24": ["2 dozen", "2 dozen eggs"],
    "500": ["5 hundred", "five hundred"],
    "2/3": ["two thirds", "2 thirds of it"],
    "40": ["forty"],
    # Thousands, in English and as far as it is certain in other writing.
    "1234": ["1,234", "1 234", "1\u202f234", "1'234", "1’234", r"1{,}234", r"1\,234", "1,234.0", "$1,234$"],
    "1234567": ["1,234,567", "1.234.567", "1 234 567"],
    "1234.5": ["1,234.5", "1.234,5", "1234.50"],
    "1.234": ["1.234", "1.2340"],
    # Percent is a hundredth, and a bare number where the other has a percent sign.
    "50%": ["50%", r"50\%", "0.5", "1/2", "50", "50 percent", "50 per cent", "50.0 %"],
    "0.5": ["50%", "1/2"],
    "50": ["50%"],
    # Minus in Unicode.
    "-5": ["−5", "–5", "- 5", "‑5", "-5.0", "$-5$"],
    # Powers of ten.
    "300000": ["3e5", "3E5", "3E+5", "3×10^5", r"3 \times 10^{5}", "3 x 10^5", "3×10⁵", "3*10**5", "300,000",
               "3·10^5", "3 10^5"],
    "1e20": ["100000000000000000001"],
    "0.003": ["3e-3", "3×10^-3", "3×10⁻³", r"3\cdot10^{-3}"],
    "1000": ["10^3", "10³"],
    # Letters of options, with or without what they stand for.
    "B": ["B", "b", "(B)", "[B]", "B.", "B)", "B) cat", "(B) cat", "B. cat", "B: cat", "B, cat", "Option B", "answer B",
          "**B**", r"\text{B}", r"\textbf{(B)}", "The answer is B.", "B, a cat", "B. x, y", "B) cat, dog",
          "The correct option is (B).", "Correct choice: B", "B (cat)", "B (cats and dogs)",
          "B (5)", "B (not A)", "B. Triangle (A) is larger"],
    "D": ["D. A and C", "D. Both A and C"],
    "Z": ["Z. zebra", "(Z) zebra"],
    "B. 5 cm": ["B", "B. 5cm, because it is", "B) 5"],
    # Parts of a question.
    "a) 3, b) 4": ["a) 3, b) 4.0", "b) 4, a) 3"],
    "B, a cat": ["B", "a cat", "B, cat", "B. cat"],
    # Several options, which are a list.
    "A, B": ["A,B", "B, A", "a and b", "(A), (B)", "(A) and (B)", "A) cat, B) dog", "B. dog and A. cat",
             "Options A and B", r"\boxed{A, B}"],
    "A, B, C": ["C, A and B"],
    "(1, 2), (3, 4)": ["(3,4), (1,2)"],
    "(B) cat": ["B", "cat", "Cat.", "(B)", "B) dog"],
    "cat": ["(B) cat", "B. cat", "a cat", "The cat", "CAT", '"cat"', "“cat”", "cat.", "`cat`", r"\text{cat}"],
    # Words.
    "yes": ["Yes", "YES.", "yes!", "Yes, it is.", "Yes, and no one else", r"\text{Yes}", "Yes"],
    "no": ["No.", "No, there is none."],
    "red car": ["red  car", "a red car", "Red Car"],
    "12:30": ["12:30"],
    r"2\pi": ["2π", r"2\pi", "2 pi", r"2\cdot\pi", "2π cm", r"2\pi\text{ cm}", "2.0π square feet"],
    "pi": ["Pi", "PI", "π", r"\pi"],
    # Roots and signs in any writing; spaces around a sign tell nothing apart.
    r"5\sqrt{2}": ["5√2", r"5 \sqrt 2", r"5\sqrt2", "5√(2)", "5 sqrt(2)", r"5\cdot\sqrt{2}", "5√2 cm",
                   r"5\sqrt{2}\text{ cm}"],
    r"2 \sqrt { 221 }": [r"2\sqrt{221}", "2√221"],
    r"\sqrt{3}": ["√3", "sqrt(3)", "√3 m"],
    r"\frac{\sqrt{3}}{2}": ["√3/2", r"\sqrt{3}/2"],
    r"\sqrt{x+1}": ["√(x + 1)", "sqrt(x+1)"],
    r"36\pi\text{cm}^2": ["36π cm²", "36π"],
    r"5\frac{\text{J}}{\text{kg}\cdot\text{K}}": ["5 J/(kg*K)"],
    # A fraction has brackets where a line would be another one without them.
    r"\frac{1}{2\pi}": ["1/(2π)", r"\dfrac{1}{2 \pi}"],
    r"\frac{1}{2x}": ["1/(2x)"],
    r"\frac{2}{xy}": ["2/xy", r"\frac{2}{xy}"],
    "5 cm^2": ["5 cm^{2}", r"5\ \text{cm}^{2}", r"5\,\mathrm{cm^{2}}"],
    "x^{2} + x_{1}": ["x^2+x_1", "x² + x_1"],
    "5000": ["5千", "5천", "5千人", "5천 명", "50百"],
    "30000000": ["3千万", "3천만", "3000万", "3千万円"],
    "3/4": ["three quarters", "3 quarters of it"],
    "3月5日": ["3月5日"],
    "6": ["6月", "6時", "6개월", "6人"],
    "1990s": ["1990s", "the 1990s"],
    "90": ["90s"],
    "A -> B": ["A->B"],
    "a - 5": ["a-5"],
    "$5 bill": ["a $5 bill"],
    r"\frac{1+\sqrt{1+x}}{2}": ["(1+√(1+x))/2"],
    r"\frac{\sqrt{1+x}}{2}": [r"\sqrt{1+x}/2", "√(1 + x)/2"],
    r"\frac{(x+1)^2}{2}": ["(x+1)^2/2"],
    r"\frac{1}{(x+1)^2}": ["1/(x+1)^2"],
    r"\frac{e^{-x}}{e^{2x}}": ["e^{-x}/e^{2x}"],
    r"\frac{x^-1}{2}": ["x^-1/2"],
    r"\frac{25}{100\%}": ["25/100%"],
    r"\frac{3\text{ m}}{\text{s}^2}": ["3 m/s^2"],
    r"\frac{-b\pm\sqrt{b^2-4ac}}{2a}": [r"(-b \pm \sqrt{b^2-4ac})/(2a)"],
    r"\frac{\frac12}{3}": ["(1/2)/3"],
    r"\frac{1}{1000}": ["0.001"],
    "x > 3": ["x>3", "X >3"],
    r"x \geq 3": ["x ≥ 3", "x >= 3", r"x\ge3", r"x \geqslant 3"],
    r"x \neq 0": ["x ≠ 0", "x != 0"],
    r"\frac{x+1}{2}": ["(x+1)/2", "(x + 1) / 2"],
    "3x+2": ["3x + 2", "3 x + 2", "y = 3x+2"],
    "3:2": ["3 : 2"],
    "12:30 PM": ["12:30PM", "12:30 p.m.", "12:30 pm"],
    # What leads to a value.
    "30": ["∠ABC = 30°", r"$\angle ABC = 30^\circ$", "m∠ABC = 30", "AB = 30", "approximately 30", "≈ 30",
           r"x \approx 30", "about 30 years", "The answer is **30**", "The answer is **30**."],
    "x = 2": ["2", "X = 2", "x ≈ 2"],
    "x = 1,234": ["1234", "x = 1234"],
    "x = 2, y = 3": ["y = 3, x = 2", "x=2 and y=3", "(2, 3)"],
    "[0, 1)": ["[0,1)", "[0.0, 1)"],
    r"(-\infty, 3], [4, 5)": [r"[4, 5), (-\infty, 3]"],
    "x = 2, x = 3": ["3, 2", "x = 3, x = 2", "x = 3 and x = 2"],
    "S = {1, 2}": ["{2, 1}", "S = {2, 1}"],
    "10^5": ["10**5", "100000"],
    # Lists; the order counts in brackets.
    "(1, 2)": ["(1,2)", "[1, 2]", "1, 2", r"\left(1, 2\right)", "(1.0, 2)", "(1; 2)"],
    "(1/2, 3)": [r"\left(\frac{1}{2}, 3\right)", "(0.5, 3)"],
    "1, 2": ["2, 1", "1 and 2", "{1, 2}", "(1, 2)"],
    "{1, 2}": ["{2, 1}", r"\{1, 2\}", "2, 1"],
    "red, green and blue": ["blue, green, and red", "red, green, blue"],
    # LaTeX around everything.
    "7": ["$7$", "$$7$$", r"\(7\)", r"\[7\]", r"\boxed{7}", r"\mathbf{7}", r"\text{7}", "**7**"],
}  # fmt: skip
OTHER = {
    "1/2": ["1/3", "2", "1/20", "0.51", ""],
    "1/3": ["0.333", "0.3"],
    "1 1/2": ["11/2", "1/2", "1"],
    "5 cm": ["5 mm", "50 mm", "0.05 m", "6 cm", "5%"],
    "5 m^2": ["5 m", "5 m^3"],
    "2": ["2 million", "2 thousand", "$2 million", "2 dozen eggs", "2 thirds", "2万", "2a", "2ab", "2abc", "2mn",
          "2 pi", "2πr", "2θ", "2sin x", "2sinx", "2 sqrt(3)", "2m-1", "2m*3", "2 squared"],
    "2 thousand": ["2", "2 million"],
    "2x + 1": ["3x + 1", "2x + 2", "2"],
    "1080p": ["1080", "720p"],
    "10": ["10K", "10k", "ten point five"],
    "20": ["twenty five"],
    "1234": ["1.234", "12,34", "123,4", "1234.5"],
    "0.1": ["0.10000001"],
    "1e-12": ["2e-12", "0"],
    "1.2": ["1,2", "12"],
    "12": ["1,2"],
    "50%": ["5%", "5", "0.05", "50 cm"],
    "-5": ["5"],
    "300000": ["3×10^6", "3×10^-5", "35"],
    "B": ["A", "C", "B cat", "cat", "bee", "AB", "(A) B"],
    "A": ["A cat is there", "A, B", "A and B", "(A), (B)", "(A) and (B)", "A) cat, B) dog",
          # Who copies all options chooses none.
          "A. B. C.", "A) B) C)", "A) cat B) dog", "(A) cat (B) dog", "A. cat B. dog", "A, B or C", "A, or B", "A (B)"],
    "P (2, 3)": ["P (3, 2)", "Q (2, 3)"],
    "f (x)": ["f (y)"],
    "x: 5": ["x: 6"],
    "x: 5, y: 6": ["x: 6, y: 5"],
    "a) 3 b) 4": ["a) 5 b) 6"],
    "a) 3, b) 4": ["a) 4, b) 3", "a) 3, b) 5"],
    "A, B": ["A", "B", "A, C", "A and C", "A, B, C", r"\boxed{A}"],
    "A,C,D": ["A"],
    "A, B, C": ["A, B, D"],
    "x, y": ["x, z"],
    "C, Java": ["C, Python"],
    "(1, 2), (3, 4)": ["(1, 2), (4, 3)"],
    "(B) cat": ["dog", "(A) cat", "(A) dog"],
    "dog": ["(B) cat", "dogs", "a hot dog"],
    "cat": ["category", "cats", "no cat"],
    "yes": ["no", "yesterday", "not yes", "Yes/No", "Yes or no?", "yes and no", "/no"],
    "no": ["nothing", "not", "yes, no", "No / Yes"],
    "true": ["True/False"],
    "(1, 2)": ["(2, 1)", "(1, 2, 3)", "1", "(1 2)"],
    "1, 2": ["1", "1, 1", "1, 2, 3"],
    "1, 1": ["1, 2", "1"],
    "2020-01-02": ["2020-01-03"],
    r"5\sqrt{2}": ["5", "10", r"5\sqrt{3}", "2√5", "√2", "5√2 + 1", "5√2x", "52"],
    "36π": ["36", "36πr", "36π r", "12π", "36π + 1"],
    "36π cm": ["36π m", "36 cm"],
    r"\frac{x+1}{2}": ["x+1/2"],
    r"\frac{1}{2\pi}": [r"\frac{1}{2}\pi", r"0.5\pi"],
    r"\frac{1}{2\sqrt{3}}": [r"\frac{1}{2}\sqrt{3}"],
    r"\frac{1}{2x}": [r"\frac{1}{2}x", "x/2"],
    r"\frac{2}{xy}": [r"\frac{2}{x}y"],
    "x^{2y}": ["x^2y"],
    "3": ["3千万", "3百", "3천", "3月5日", "3시30분", "3分の1", "3分之1", "three quarters", "3n-1", "3 n", "3n-log",
          "3M", "3 cubed", "3n", "3 plus 4", "3m+1"],
    "1": ["one quarter", "1/0", "1e999999999", "10"],
    "1990": ["1990s"],
    "1990s": ["1990", "1980s"],
    "a - 5": ["-5", "- 5"],
    "a + b": ["+b"],
    r"\frac{2}{(x+1)(x-1)}": [r"\frac{2}{(x+1)}(x-1)"],
    r"\frac{1\pm\sqrt{5}}{2}": [r"1\pm\frac{\sqrt{5}}{2}"],
    r"\frac{\frac{1}{2}}{3}": [r"\frac{1}{\frac{2}{3}}"],
    r"\frac{3}{2^2}": ["1.5^2", "1.5"],
    "5/10^3": ["0.5^3", "0.5"],
    "200": ["210^2", "two hundred fifty", "two hundred and five"],
    "1000": ["110^3"],
    "x > 3": ["x < 3", "x ≥ 3", "x > 33"],
    "(1 2)": ["(12)"],
    "red car": ["redcar"],
    "12:30 PM": ["12:30 AM"],
    "about": ["about 5"],
    "x = 2": ["y = 2", "x = 3"],
    "x = 2, y = 3": ["x = 3, y = 2", "y = 2, x = 3", "(3, 2)", "3, 2"],
    "5": ["-5", "50", "5x", "5 and 6", "5, 6", "5-10", "5 out of 10", "5 apples are on the table", "15", "5πmeters",
          r"5\pi\mathrm{rad}"],
    "y = 2x": ["x = 2x"],
    "[0, 1)": ["[0, 1]", "(0, 1)", "(0, 1]", "0, 1"],
    "(0, 1)": ["[0, 1)", "(0, 1]"],
    "(-∞, 3]": ["(-∞, 3)"],
    "a == b": ["c == b"],
    "12:30": ["12:31"],
}  # fmt: skip


@pytest.mark.parametrize("text", ["1e301", "1e-301", "10^-301", "1" * 301])
def test_a_number_that_would_take_very_many_digits_is_none(text):
    assert number_of(text) is None
    assert number_of("1e-300").value == Fraction(1, 10**300)


@pytest.mark.parametrize(("right", "answer"), [(right, answer) for right, many in SAME.items() for answer in many])
def test_the_same(right, answer):
    assert equal(right, answer)


@pytest.mark.parametrize(("right", "answer"), [(right, answer) for right, many in OTHER.items() for answer in many])
def test_not_the_same(right, answer):
    assert not equal(right, answer)


@pytest.mark.parametrize("repeated", [r"\frac{", r"\sqrt{", r"\sqrt", r"\text{", r"\boxed{", "(", "1,"])
def test_an_answer_that_repeats_itself_takes_no_time(repeated):
    long, began = repeated * 8000, time.process_time()
    assert final_answer({"answer": "A"}, [f"Final Answer: {long}"]) == [0]
    assert contains.contains({"answer": "A"}, [long]) == [0]
    # A rule has 10 s; this takes a few ms, and took 12 to 40 s.
    assert time.process_time() - began < 2


@pytest.mark.parametrize("repeated", ["A) ", "(A) ", "A. ", "A. a.m."])
def test_an_answer_that_repeats_an_option_is_wrong(repeated):
    # Each option with what is behind it was a value of its own, deeper than Python calls functions.
    assert final_answer({"answer": "5 cm"}, [f"Final Answer: {repeated * 280}"]) == [0]


def test_a_long_text_is_the_same_by_its_words():
    assert equal("The cat. " * 300, "the  cat. " * 300)
    assert not equal("cat " * 600, "cat " * 599 + "dog")


def test_true_and_false_of_a_column_are_words():
    said = [
        "Final Answer: True",
        "Final Answer: false",
        "Final Answer: Yes, it is.",
        "Final Answer: no",
        "Final Answer: 1",
    ]
    assert final_answer({"answer": True}, said) == [1, 0, 1, 0, 0]
    # Every cell of a CSV is text.
    assert final_answer({"answer": "true"}, said) == [1, 0, 0, 0, 0]
    assert final_answer({"answer": '["true", "yes"]'}, said) == [1, 0, 1, 0, 0]
    assert final_answer({"answer": False}, said) == [0, 1, 0, 1, 0]
    said = ["True", "False.", "Yes.", "No, there is none", "True, there is no cat", "It is not true"]
    assert contains.contains({"answer": True}, said) == [1, 0, 1, 0, 1, 1]
    assert contains.contains({"answer": False}, said) == [0, 1, 0, 1, 0, 0]


def test_every_rule_is_described_with_its_columns():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    for name, one in BUILT_IN.items():
        assert f"| `{name}` | `{'`, `'.join(one.columns)}` |" in page, name
