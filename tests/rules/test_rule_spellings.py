r"""One value in several spellings, as data sets and models write it: units, LaTeX, signs and sums."""

import pytest

from data_engine.rules.values import equal

# Right, and answers that are the same.
SAME = {
    # Units by name and by symbol; the case tells mega from milli alone.
    "5 MW": ["5 megawatts", "5 MW", "5 mw", "5"],
    "5 mW": ["5 milliwatts", "5 mw"],
    "3 MHz": ["3 MHZ", "3 mhz", "3 megahertz"],
    "5 kΩ": ["5 kiloohms", r"5\,\mathrm{k}\Omega", "5 kΩ"],
    "10 µF": ["10 μF", "10 microfarads", r"10\,\mu\text{F}"],
    "300 K": ["300 kelvin", "300 Kelvins"],
    "12 V": ["12 volts"],
    "20 kWh": ["20 kilowatt-hours", "20 kilowatt hours", "20 KWH"],
    "5 lbs": ["5 pounds", "5 lb"],
    "5 pounds": ["£5", "5 lbs"],
    "4 oz": ["4 ounces"],
    "4 gal": ["4 gallons"],
    "$12.50 per unit": ["$12.50/unit", "12.50 dollars per unit", "12.50"],
    "4 MB": ["4 megabytes", "4 mb"],
    "4 Mbit": ["4 megabits"],
    "4 rad/s": ["4 radians per second"],
    "4 N·m": ["4 N m", "4 newton-meters", r"4\ \mathrm{N\cdot m}"],
    "60 km/h": ["60 kilometers per hour", "60 km/hr", "60 kmph"],
    "60 mph": ["60 miles per hour"],
    "9.8 m/s^2": ["9.8 meters per second squared", r"9.8\,\text{m}\,\text{s}^{-2}", "9.8 m s^-2"],
    "24 cm^2": ["24 square centimeters", "24 sq cm", "24 sq. cm", "24 cm2", "24 cm squared"],
    "24 m^3": ["24 cubic meters", "24 cubic metres"],
    "4 kg/m^3": ["4 kilograms per cubic meter", r"4\,\text{kg m}^{-3}"],
    "4 years": ["4 years old"],
    "4 ft": ["4 feet tall", "4 feet away"],
    "100 °C": ["100 degrees Celsius", "100 ℃", "100 C", "100 degrees"],
    "75°F": ["75 degrees F", "75 degrees Fahrenheit"],
    # Feet and minutes, inches and seconds.
    "5'": ["5 ft", "5 feet", "5′", "5 minutes", "5"],
    '6"': ["6 inches", "6 in", "6″", "6''"],
    "5' 10\"": ["5'10\"", "5′10″"],
    "30°15'": ["30° 15′"],
    # Quotes are taken off in pairs, and alone where a text begins.
    "Men's": ["Men’s", '"Men\'s"', "“Men’s”"],
    "A'": ["A′", '"A\'"'],
    "90s": ["'90s"],
    # Greek letters, signs and functions.
    r"\theta": ["θ", r"$\theta$"],
    r"\alpha+\beta": ["α + β"],
    r"2\lambda": ["2λ"],
    r"\varphi": [r"\phi", "φ"],
    r"\Delta x": ["Δx", "Δ x"],
    r"\pi r^2": ["πr²", "π r^2"],
    r"\theta = 30^\circ": ["30°", "θ = 30"],
    r"\sin\theta": ["sin θ", r"\sin(\theta)"],
    r"\ln 2": ["ln(2)", "ln 2"],
    r"\log_2 8": ["log_2 8"],
    r"(-\infty, 2)": ["(-∞, 2)"],
    r"(-\infty,0)\cup(0,\infty)": ["(0, ∞) ∪ (-∞, 0)", r"(-\infty, 0) \cup (0, \infty)"],
    r"x \in [-2, 7]": ["[-2,7]", "x∈[-2, 7]"],
    r"\pm 3": ["±3", "3, -3", "x = ±3", r"x = 3 \text{ or } x = -3"],
    r"AB \perp CD": ["AB ⊥ CD"],
    r"\triangle ABC": ["△ABC"],
    r"\emptyset": ["∅"],
    r"45^\circ \text{ or } 135^\circ": ["135°, 45°", "45° or 135°"],
    r"\$32,\!348": ["32348", "$32,348"],
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}": [r"\begin{bmatrix}1\\2\end{bmatrix}", "(1, 2)"],
    r"\begin{pmatrix} 1 & 2 \\ 3 & \frac12 \end{pmatrix}": [r"\begin{pmatrix}1&2\\3&0.5\end{pmatrix}"],
    # Subscripts, exponents and charges.
    "H2O": ["H_2O", r"\mathrm{H_2O}", "H₂O"],
    "C6H12O6": ["C_6H_{12}O_6"],
    "Mg(OH)2": [r"\mathrm{Mg(OH)_2}"],
    "V_{CC}": ["V_CC"],
    "Na+": [r"\text{Na}^+", "Na⁺"],
    "Ca^{2+}": ["Ca²⁺", "Ca2+"],
    "2^{10}": ["2^10"],
    "2^{-3}": ["2^-3"],
    # Names of values.
    r"\sin A = \frac{3}{5}": ["3/5", "sin A = 0.6"],
    "f(x) = x^2": ["x^2", "x²"],
    r"\angle 1 = 50^\circ": ["50"],
    "12": ["Area = 12", "{12}"],
    # Parts of π and of roots.
    r"\frac{\pi}{3}": ["π/3", r"\frac{1}{3}\pi", r"\frac13 \pi"],
    r"\frac{2\pi}{3}": ["2π/3", r"\frac{2}{3}\pi"],
    r"\frac{\sqrt{5}}{2}": [r"\frac{1}{2}\sqrt{5}", "0.5√5"],
    r"2\sqrt{3}cm": ["2√3", "2√3 cm"],
    r"-\frac{1}{3}": [r"\frac{1}{-3}", "1/-3"],
    # Sums in another order.
    r"8+4\sqrt{2}": [r"4\sqrt{2}+8", "8 + 4√2"],
    r"3-2\sqrt{2}": [r"-2\sqrt{2}+3"],
    "6-5i": ["-5i+6"],
    "2x^2-3x+1": ["1-3x+2x^2"],
    r"2-\frac{\pi}{2}": [r"-\frac12\pi+2"],
    "2(x+1)+3": ["3+2(x+1)"],
    "e^{-x}+1": ["1+e^{-x}"],
    "A + B": ["B + A"],
    "45": ["forty-five"],
    "2 or 3": ["3 or 2", "2, 3"],
}
OTHER = {
    "5 mW": ["5 MW", "5 megawatts", "5 kW"],
    "3 MHz": ["3 mHz", "3 kHz"],
    "2 MJ/kg": ["2 mJ/kg"],
    "12 V": ["12 A"],
    "5 bits": ["5 bytes"],
    "5 m": ["5 min", "5 miles", "5 mm"],
    "5 s^-1": ["5 s"],
    "$5 per hour": ["$5 per day"],
    "5 lbs": ["£5", "5 kg"],
    "9.8 m/s^2": ["9.8 m/s", "9.8 meters per second"],
    "24 cm^2": ["24 cm^3", "24 cubic centimeters", "24 cm"],
    "4 kg/m^3": ["4 kg/m^2"],
    "4 N/m": ["4 N·m"],
    "$12.50 per unit": ["$12.50 per hour", "€12.50 per unit"],
    "100 °C": ["100 °F", "100 degrees Fahrenheit", "100 K"],
    "20 kWh": ["20 kW", "20 Wh"],
    "5'": ['5"', "5 inches", "5'10\""],
    "5": ["5'10\"", "5^2"],
    "30": ["30°15'"],
    "30°15'": ['30°15"', "30°"],
    "A": ["A'"],
    "f": ["f'"],
    r"\theta": [r"\phi", "0"],
    "2": [r"2\theta", r"2\lambda", "±2"],
    r"\sin\theta": [r"\cos\theta"],
    r"\sin A = \frac{3}{5}": [r"\cos A = \frac{3}{5}"],
    "f(x) = x^2": ["g(x) = x^2"],
    r"\log_2 3": [r"\log_3 2"],
    "μια γάτα": ["μιαγάτα"],
    r"(-\infty, 2)": ["(-∞, 2]", "(∞, 2)"],
    r"(-\infty, -2] \cup [3, \infty)": ["(-∞, -2) ∪ [3, ∞)", "(-∞, -2]"],
    r"\pm 3": ["3", "-3"],
    r"1 \pm \sqrt{3}": [r"1+\sqrt{3}"],
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}": [r"\begin{pmatrix}2\\1\end{pmatrix}"],
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}": [r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}"],
    "C6H12O6": ["C_6H_{12}O_5"],
    "2516_8": ["25168"],
    "Cl-": ["Cl+"],
    "Ca^{2+}": ["Ca^+"],
    r"\frac{\pi}{3}": ["3π", r"\frac{3}{\pi}", "π"],
    r"\frac{\sqrt{5}}{2}": [r"\frac{2}{\sqrt{5}}", r"\frac{5}{\sqrt{2}}"],
    "π/0": ["π"],
    r"\sin(x)+1": [r"\sin(x+1)"],
    r"\sin(2)x": [r"\sin(2x)"],
    "|x-3|+2": ["|x+2|-3"],
    "2√3": ["2√3x", "2√3πr"],
    r"8+4\sqrt{2}": [r"4+8\sqrt{2}", r"8-4\sqrt{2}", r"8+4\sqrt{2}+1"],
    r"3-2\sqrt{2}": [r"2\sqrt{2}-3", r"3+2\sqrt{2}"],
    "2(x+1)+3": ["2(x+3)+1"],
    "e^{-x}+1": ["e^{1-x}", "e^{+1-x}"],
    "2020-01-02": ["2020-02-01", "2020+01-02"],
    "1-2-3": ["1-3-2"],
    "x+2=5": ["x+5=2"],
    "A + B -> C": ["A + C -> B", "B -> C + A"],
    "45": ["forty", "fifty-four"],
    "2 or 3": ["2", "2 or 4"],
    "A, B": ["A or B"],
}


@pytest.mark.parametrize(("right", "answer"), [(right, answer) for right, many in SAME.items() for answer in many])
def test_one_value_in_two_spellings(right, answer):
    assert equal(right, answer)
    assert equal(answer, right)


@pytest.mark.parametrize(("right", "answer"), [(right, answer) for right, many in OTHER.items() for answer in many])
def test_two_values_in_like_spellings(right, answer):
    assert not equal(right, answer)
    assert not equal(answer, right)


def test_a_sign_that_repeats_itself_is_no_value():
    # Each ± was two values of its own.
    assert not equal("±" * 500 + "3", "±" * 900 + "3")
