"""What editors, notebooks and type checkers see of the package: the functions for Python, imported on first use."""

import ast
import subprocess
import sys
from pathlib import Path

import data_engine

PACKAGE = Path(data_engine.__file__).parent
FUNCTIONS = ["build_pairs", "load_model", "sample_answers", "score_answers"]


def test_a_notebook_lists_the_public_functions_before_their_first_use():
    code = "import sys, data_engine; print(*dir(data_engine)); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed = done.stdout.split()
    assert set(FUNCTIONS) <= set(listed)
    assert [name for name in listed if not name.startswith("_")] == FUNCTIONS


def test_type_checkers_see_each_public_function_where_it_is_defined():
    """They neither follow __getattr__ nor, without py.typed, look into an installed package."""
    assert (PACKAGE / "py.typed").is_file()
    assert data_engine.__all__ == FUNCTIONS
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(seen) == FUNCTIONS
    for name, module in seen.items():
        assert getattr(data_engine, name) is getattr(sys.modules[module], name)
