"""The shape of the project: who may import whom, how long a file may grow, what the reader is told about."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_engine.config import FIELD_NAMES

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "engine").rglob("*.py"), *(ROOT / "kernels" / "ops").rglob("*.py")])
# Top to bottom. A module may import from its own floor and those below; a folder stands on one floor as a whole.
FLOORS = [
    "cli __main__ demo",
    "arguments validate submit status bench bench_ways bench_model bench_job bench_machine pipeline together runfile"
    " progress",
    "sample score pairing report",
    "budgets models decode answers pages steps lanes caches logps packing attention sampler kernels rewards pairs"
    " filters draft exports words rows scratch funnel plots ahead summary image_workers",
    "units claims disk ranks lifeline stacks logs dataset sources jsonl images",
    "records config seeds",
]
STAGES = FLOORS[2].split()
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names.split()}


def module_of(path: Path) -> str:
    """engine/models/llava.py -> models.llava; a package is its folder's name, data_engine itself is empty."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("kernels", *parts[2:]) if parts[0] == "kernels" else parts[1:]
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in SOURCES}


def imports_of(path: Path) -> set[str]:
    """Modules of the project that a file imports, wherever in the file, for type checking too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from data_engine.demo import world` may name a module or what a module holds.
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    ours = {name.removeprefix("data_engine.") for name in names if name.startswith("data_engine.")}
    found = ours & set(MODULES)
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


GRAPH = {name: imports_of(path) for name, path in MODULES.items() if name}


def floor(module: str) -> int:
    return FLOOR_OF[module.partition(".")[0]]


def test_every_module_stands_on_a_floor():
    homeless = {module.partition(".")[0] for module in GRAPH} - set(FLOOR_OF)
    assert not homeless, f"say in FLOORS where these stand: {homeless}"


def test_imports_point_down():
    upward = [f"{one} -> {other}" for one, others in GRAPH.items() for other in others if floor(other) < floor(one)]
    assert not upward


def test_no_imports_go_round_in_a_circle():
    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        for other in GRAPH[module]:
            walk(other, (*trail, module))

    for module in GRAPH:
        walk(module, ())


def test_stages_meet_in_files_alone():
    assert not [f"{one} -> {other}" for one in STAGES for other in GRAPH[one] if other in STAGES]


def test_nothing_but_the_demo_knows_the_demo():
    users = [one for one, others in GRAPH.items() if any(other.startswith("demo") for other in others)]
    assert all(user.startswith("demo") for user in users)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 350


def test_the_environment_is_read_in_one_place():
    def reads_environment(path: Path) -> bool:
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        return bool(names & {"environ", "getenv"})

    assert [module for module, path in MODULES.items() if reads_environment(path)] == ["ranks"]


def test_every_module_says_what_it_is():
    # The kernels' package is a folder, whose README speaks for it.
    silent = [module for module, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def run(code: str, **environment: str) -> str:
    """Standard output of Python code run at the root."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, check=True, capture_output=True, text=True
    ).stdout


def test_our_kernels_folder_hides_no_package_of_that_name(tmp_path):
    """transformers imports the PyPI package `kernels`, and must find that one, or none."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    assert not (ROOT / "kernels" / "__init__.py").exists()
    found = run("import kernels; print(kernels.__file__)", PYTHONPATH=str(tmp_path))
    assert found.strip() == str(tmp_path / "kernels" / "__init__.py")
    # Without it, a bare folder remains, which Python calls a namespace and no library takes for the package.
    found = run("import importlib.util; s = importlib.util.find_spec('kernels'); print(s and s.origin)")
    assert found.strip() == "None"


def test_the_command_line_starts_without_torch():
    modules = "cli arguments validate submit status pairing report"
    code = f"import sys, importlib; [importlib.import_module('data_engine.' + m) for m in '{modules}'.split()]"
    assert run(f"{code}; print('torch' in sys.modules, 'transformers' in sys.modules)").split() == ["False", "False"]


def test_every_flag_is_in_the_readme_and_in_the_help():
    readme = (ROOT / "README.md").read_text()
    shown = subprocess.run(
        [sys.executable, "-m", "data_engine", "run", "--help"], check=True, capture_output=True, text=True
    ).stdout
    for name in FIELD_NAMES:
        assert re.search(rf"`--{name}`", readme), f"README.md does not tell about --{name}"
        assert re.search(rf"--{name}\b", shown), f"--help does not tell about --{name}"


def test_every_configuration_names_known_flags():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        names = re.findall(r"^(?:# )?(\w+):(?: |$)", path.read_text(), re.MULTILINE)
        assert names
        assert set(names) <= set(FIELD_NAMES), path.name


def test_the_project_has_exactly_the_packages_that_setup_cfg_names():
    folders = {path.parent for path in (ROOT / "engine").rglob("__init__.py")} | {ROOT / "kernels" / "ops"}
    text = (ROOT / "setup.cfg").read_text()
    mapped = re.findall(r"^    data_engine\S* = (\S+)$", text, re.MULTILINE)
    assert {ROOT / path for path in mapped} == folders
