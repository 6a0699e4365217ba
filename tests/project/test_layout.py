"""The shape of the project: who may import whom, how long a file may grow, what the reader is told about."""

import ast
import functools
import importlib.machinery
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_engine import stages
from data_engine.flags import FIELD_NAMES

ROOT = Path(__file__).parents[2]
ROOTS = [ROOT / "engine", ROOT / "kernels"]
SOURCES = sorted(
    path for root in ("engine/data_engine", "kernels/data_engine_kernels") for path in (ROOT / root).rglob("*.py")
)
# Top to bottom. A package stands on one floor, and imports from its own floor and from those below.
FLOORS = [
    "commands bench demo",
    "planning",
    "job watching rounds",
    "pipeline",
    "sampling scoring rewards preferences exports reporting",
    "models",
    "data_engine_kernels",
    "store questions processes rules",
    "config config_checks flags chat_settings vllm_settings flag_files schemas errors exit_codes seeds stages"
    " of_pairing plural duration tables",
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names.split()}


def module_of(path: Path) -> str:
    """engine/data_engine/models/native/llava.py -> data_engine.models.native.llava; a package has its folder's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in SOURCES}


@functools.cache
def code_of(path: Path) -> SimpleNamespace:
    """What the tests below look at in a file's code, which is parsed once."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    return SimpleNamespace(
        imports=[node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)],
        attributes={node.attr for node in nodes if isinstance(node, ast.Attribute)},
        docstring=ast.get_docstring(tree),
    )


def imports_of(path: Path) -> set[str]:
    """Modules of the project that a file imports, wherever in the file, for type checking too."""
    names = set()
    for node in code_of(path).imports:
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from data_engine.demo import world` may name a module or what a module holds.
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    found = names & set(MODULES)
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def package_of(module: str) -> str:
    """data_engine.models.native.llava -> models; what lies beside the packages is one of its own."""
    return module.removeprefix("data_engine.").partition(".")[0]


@functools.cache
def graph() -> dict[str, set[str]]:
    """What each module imports; not made where the tests of this file are collected only."""
    outside = ("data_engine", "data_engine.__main__")
    return {name: imports_of(path) for name, path in MODULES.items() if name not in outside}


@functools.cache
def packages() -> dict[str, set[str]]:
    """The same of packages."""
    found = {package_of(name): set() for name in graph()}
    for one, others in graph().items():
        found[package_of(one)] |= {package_of(other) for other in others} - {package_of(one), "data_engine"}
    return found


def circle(graph: dict[str, set[str]]) -> str:
    """A way through the imports that comes back to where it began, or nothing."""

    def walk(place: str, trail: tuple[str, ...]) -> str:
        if place in trail:
            return " -> ".join([*trail, place])
        if place in done:
            return ""
        found = next(filter(None, (walk(other, (*trail, place)) for other in graph.get(place, ()))), "")
        done.add(place)
        return found

    done: set[str] = set()
    return next(filter(None, (walk(place, ()) for place in graph)), "")


def test_every_package_stands_on_a_floor():
    homeless = set(packages()) - set(FLOOR_OF)
    assert not homeless, f"say in FLOORS where these stand: {homeless}"


def test_imports_point_down():
    upward = [f"{one} -> {other}" for one, others in graph().items() for other in others
              if other != "data_engine" and FLOOR_OF[package_of(other)] < FLOOR_OF[package_of(one)]]  # fmt: skip
    assert not upward


def test_no_imports_go_round_in_a_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == "a -> b -> c -> b"
    assert not circle(graph())
    assert not circle(packages())


def test_stages_meet_in_files_alone():
    every = [*stages.known().values(), stages.GIVEN]
    files = {stage.runner.partition(":")[0] for stage in every} | {"data_engine.pipeline.pair"}
    assert len(files) >= 4
    assert not [f"{one} -> {other}" for one in files for other in graph()[one] if other in files]


def test_nothing_but_the_demo_knows_the_demo():
    assert not [one for one, others in packages().items() if "demo" in others]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 350


def test_the_environment_is_read_in_one_place():
    readers = [module for module, path in MODULES.items() if code_of(path).attributes & {"environ", "getenv"}]
    assert [module.removeprefix("data_engine.processes.") for module in readers] == [
        "children", "cpu_wait", "exit_report", "home", "ranks",
    ]  # fmt: skip


def test_every_module_says_what_it_is():
    silent = [module for module, path in MODULES.items() if not code_of(path).docstring]
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
    modules = "commands.main commands.arguments commands.validate commands.submit commands.status"
    modules += " pipeline.pair reporting.page"
    code = f"import sys, importlib; [importlib.import_module('data_engine.' + m) for m in '{modules}'.split()]"
    assert run(f"{code}; print('torch' in sys.modules, 'transformers' in sys.modules)").split() == ["False", "False"]


def test_every_flag_is_in_the_table_of_flags_and_in_the_help():
    told = (ROOT / "docs/flags.md").read_text()
    shown = subprocess.run(
        [sys.executable, "-m", "data_engine", "run", "--help"], check=True, capture_output=True, text=True
    ).stdout
    for name in FIELD_NAMES:
        assert re.search(rf"`--{name}`", told), f"docs/flags.md does not tell about --{name}"
        assert re.search(rf"--{name}\b", shown), f"--help does not tell about --{name}"


def test_every_configuration_names_known_flags():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        names = re.findall(r"^(?:# )?(\w+):(?: |$)", path.read_text(), re.MULTILINE)
        assert names
        assert set(names) <= set(FIELD_NAMES), path.name


def test_how_it_is_built_names_what_is_there_and_every_folder_of_the_models():
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs/architecture.md").read_text()))
    engine, models = ROOT / "engine/data_engine", ROOT / "engine/data_engine/models"

    def is_there(name: str) -> bool:
        # A file of a folder that its row names stands there without it.
        return any((root / name).exists() for root in (ROOT, engine, models)) or any(models.rglob(name))

    lost = [name for name in named if not is_there(name)]
    assert len(named) > 50
    assert not lost
    folders = {f"{path.parent.relative_to(models)}/" for path in models.rglob("__init__.py")} - {"./"}
    assert len(folders) > 8
    assert folders <= named


def test_the_project_has_exactly_the_packages_that_setup_cfg_names():
    folders = {module_of(path) for path in SOURCES if path.name == "__init__.py"}
    text = (ROOT / "setup.cfg").read_text()
    named = re.search(r"^packages =\n((?:    .*\n)+)", text, re.MULTILINE)[1].split()
    # launch/ holds scripts, not modules that anybody imports, and is installed as package data.
    assert sorted(named) == sorted({*folders, "data_engine.launch"})


def test_a_tool_that_reads_code_finds_every_import_without_an_installation():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    roots = [str(ROOT / root) for root in settings["pyright"]["extraPaths"]]
    assert [ROOT / root for root in settings["mypy"]["mypy_path"].split(":")] == ROOTS
    imported = {}
    for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]:
        for node in code_of(path).imports:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("data_engine"):
                imported[node.module] = path
    for module, path in imported.items():
        found, where = None, roots
        for part in module.split("."):
            found = importlib.machinery.PathFinder.find_spec(part, where)
            assert found, f"{path.relative_to(ROOT)}: {module}"
            where = found.submodule_search_locations
