"""README.md and docs/ against what is there: targets of make, the demo, flags, formulas, proofs, messages."""

import ast
import math
import re
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import inner_make
import numpy as np
import pytest
import torch
from shown import PAGES, ROOT, SHELL, SHOWN

from data_engine.config import RunConfig
from data_engine.of_pairing import FLAGS
from data_engine.preferences.answers import REASONS
from data_engine.preferences.candidates import STATUSES
from data_engine.rewards import Tokens, contrast
from data_engine.rewards.implicit import token_rewards
from data_engine.stages import SAMPLING

TEXT = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_the_readme_fits_three_screens():
    assert len(TEXT.splitlines()) <= 120


def test_the_first_two_commands_are_demo_and_test():
    shown = [one.text for one in SHOWN if one.page == "README.md" and one.kind in SHELL]
    assert shown[:2] == ["make demo", "make test"]


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for page in (*PAGES, "CONTRIBUTING.md"):
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)(?=`| +#| +[A-Z_]+=|$)", (ROOT / page).read_text(), re.MULTILINE))
        assert named <= targets, page


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "CONTRIBUTING.md", "kernels/README.md"])
def test_every_file_that_a_page_links_to_or_names_exists(page):
    text, folder = (ROOT / page).read_text(), (ROOT / page).parent
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert not [link for link in links if link and not (folder / link).exists()]
    if folder.name == "docs":
        # The site has the pages of docs/ alone.
        assert not [link for link in links if link.startswith("..")]
    named = re.findall(r"`((?:configs|launch|tests|kernels|docs)/[\w./-]+\.\w+)", text)
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.slow
def test_the_demo_shows_that_chosen_answers_hallucinate_far_less(tmp_path):
    venv = Path(sys.executable).parents[1]
    command = ["make", "demo", f"DEMO_DIR={tmp_path}", f"VENV={venv}"]
    options = {"env": inner_make.environment(), "capture_output": True, "text": True, "timeout": 500}
    done = subprocess.run(command, cwd=ROOT, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    chosen, rejected = map(
        float, re.search(r"^hallucinated objects +([\d.]+)% +([\d.]+)%$", done.stdout, re.M).groups()
    )
    assert rejected > 15
    assert chosen <= rejected / 4
    assert (tmp_path / "work/report/index.html").is_file()


@pytest.mark.parametrize("page", ["docs/flags.md", "docs/pairs.md"])
def test_the_defaults_in_a_table_of_flags_are_the_real_ones(page):
    text = (ROOT / page).read_text().partition("## Which answers rank")[0]
    rows = re.findall(r"^\| (`--[^|]*) \| ([^|]*) \|", text, re.MULTILINE)
    shown = {}
    for names, defaults in rows:
        names, values = re.findall(r"--(\w+)", names), defaults.strip(" `").split(", ")
        shown |= dict(zip(names, values if len(values) == len(names) else values * len(names), strict=True))
    real = {name: field.default for name, field in RunConfig.__dataclass_fields__.items()}
    assert page != "docs/flags.md" or set(shown) == set(real)
    for name, text in shown.items():
        expected = real[name]
        if isinstance(expected, bool):
            assert text == "off", name
        elif expected is None:
            assert text in ("", "none", "from config.json", "auto", "implicit.sum,implicit.avg"), name
        elif text != "required":
            assert text == str(expected), name


def test_every_flag_of_pairing_is_told_and_those_that_a_run_binds_are_named_as_such():
    text = (ROOT / "docs/pairs.md").read_text().partition("## Which answers rank")[0]
    flags = re.findall(r"--(\w+)", "".join(re.findall(r"^\| (`--[^|]*) \|", text, re.MULTILINE)))
    assert sorted(flags) == sorted(FLAGS)
    assert re.findall(r"All but `--(\w+)`", text) == [name for name in flags if name in SAMPLING.settings]


@pytest.mark.parametrize(("section", "names"), [("Which answers rank", REASONS), ("Which pairs are dropped", STATUSES)])
def test_every_reason_why_an_answer_or_a_pair_is_left_out_is_named(section, names):
    text = (ROOT / "docs/pairs.md").read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    assert set(names) <= set(re.findall(r"`(\w+)`", text))


def test_the_formulas_of_rewards_give_what_the_code_gives():
    rows = dict(re.findall(r"^\| `(\w+\.\w+)` \| `([^`]+)` \|$", (ROOT / "docs/pairs.md").read_text(), re.MULTILINE))
    reward, instruct, blind = ([-0.5, -1.0, -2.25], [-1.5, -0.75, -2.0], [-3.0, -0.5, -1.0])
    both = lambda one, other: [a - b for a, b in zip(one, other, strict=True)]  # noqa: E731
    names = {"beta": 0.1, "d": both(reward, instruct), "c": both(instruct, blind), "N": 3, "sum": sum, "min": min}
    tokens = [Tokens.of([values]) for values in (instruct, reward, blind)]
    real = {f"implicit.{name}": column[0] for name, column in token_rewards(tokens[0], tokens[1], 0.1).items()}
    total, lengths = contrast.sums(tokens[0], tokens[2])
    real |= {"contrast.sum": total[0], "contrast.avg": total[0] / lengths[0]}
    assert set(rows) == set(real)
    for name, formula in rows.items():
        assert math.isclose(eval(formula, {"__builtins__": {}}, names), real[name], rel_tol=1e-12), name


def test_the_rewards_of_the_page_for_python_are_those_of_a_run():
    """A difference of log-probs in fp32 would be off by its rounding, which tells near rewards apart by chance."""
    [shown] = re.findall(
        r"^    difference = .*\n    rewards = .*$", (ROOT / "docs/python.md").read_text(), re.MULTILINE
    )
    one, other = (torch.empty(50).uniform_(-9, 0, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    found = {"one": one, "other": other}
    exec(textwrap.dedent(shown), found)
    offsets = np.array([0, 50])
    real = token_rewards(*(Tokens(logps.double().numpy(), offsets) for logps in (one, other)), 0.1)
    for name in ("sum", "avg"):
        assert math.isclose(found["rewards"][name], real[name][0], rel_tol=1e-12)


def proofs() -> dict[str, dict[str, str]]:
    """Of each page, the test that shows a line of its tables, by the line's first cell."""
    found, cell = {}, ""
    for line in (ROOT / "tests/docs/proofs.txt").read_text().splitlines():
        if line.startswith("docs/"):
            lines = found[line] = {}
        elif line.startswith("    "):
            lines[cell] = line.strip()
        else:
            cell = line
    return found


@pytest.mark.parametrize(
    ("page", "section"), [("docs/faults.md", "Faults, and what happens then"), ("docs/bound.md", "Each setting")]
)
def test_a_test_that_exists_shows_each_line_of_a_table_of_faults_and_settings(page, section):
    tables = (ROOT / page).read_text().partition(f"\n## {section}\n")[2]
    cells = re.findall(r"^\| (.+?) \|", tables, re.MULTILINE)
    proved = proofs()[page]
    assert sorted({*cells} - {"fault", "what changes"}) == sorted(proved)
    assert len(proved) > 10
    for test in proved.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"


@cache
def written_in_the_code() -> list[str]:
    """Every text of the engine's and the kernels' code, with a hole in the place of what is put into it."""
    found = []

    def text(node: ast.AST) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return re.sub(r"%(?:[\d.]*[defgrs])", "…", node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) for part in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return text(node.left) + text(node.right)
        return "…"

    folders = ROOT / "engine/data_engine", ROOT / "kernels/data_engine_kernels", ROOT / "launch"
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        lines = {}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr | ast.Constant | ast.BinOp):
                found.append(text(node))
            if isinstance(node, ast.Assign | ast.AugAssign):
                # What is said in two lines is one text.
                name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
                lines[name] = (lines.get(name, "") if isinstance(node, ast.AugAssign) else "") + text(node.value)
                found.append(lines[name])
    return found


def quoted() -> list[str]:
    section = (ROOT / "docs/faults.md").read_text().partition("## What a message means")[2]
    section = section.partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_twenty_messages_are_explained():
    assert len(quoted()) > 20


@pytest.mark.parametrize("message", quoted())
def test_a_message_that_is_explained_is_one_of_the_code(message):
    wanted = re.compile(".*".join(map(re.escape, re.split("…", message))), re.DOTALL)
    assert any(wanted.match(text) for text in written_in_the_code())
