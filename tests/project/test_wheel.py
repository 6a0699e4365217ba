"""A wheel works without the checkout: its commands, and the jobs that `submit` makes of its scripts."""

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SOURCES = ("engine", "kernels", "launch", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
# As SLURM does: the job runs a copy of the script, in the folder that it was submitted from. Here at once.
SBATCH = """#!{python}
import os, shutil, subprocess, sys
from pathlib import Path
rest = sys.argv[1:]
options = []
while rest[0].startswith("--"):
    options.append(rest.pop(0))
script, *flags = rest
[exported] = [option.removeprefix("--export=ALL,") for option in options if option.startswith("--export=")]
environment = dict(value.split("=", 1) for value in exported.split(","))
environment |= {{"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}}
spool = Path({spool!r})
copy = shutil.copy(script, spool / "slurm_script")
with open(spool / (Path(script).stem + ".out"), "w") as log:
    code = subprocess.call(["sh", copy, *flags], env=os.environ | environment, stdout=log, stderr=log)
    log.write(f"exit code {{code}}")
print(7)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the source distribution, which holds all that the wheel needs."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "source").mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "source")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    call(sys.executable, "-c", code, cwd=folder / "source")
    [sdist] = folder.glob("*.tar.gz")
    call(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder),
        str(sdist), cwd=folder,
    )  # fmt: skip
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """bin/ of an environment with the wheel, and with this one's packages but the engine."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = str(folder / "bin/python")
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", str(wheel), cwd=folder)
    [packages] = folder.glob("lib/python*/site-packages")
    # A line of a .pth file is a folder on the path; .pth files in there, the editable installation's too, do not count.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin"


def call(*command: str, cwd: Path, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_wheel_holds_every_script_and_setting_of_launch(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    paths = [path.relative_to(ROOT) for path in (ROOT / "launch").rglob("*") if path.is_file()]
    wanted = {f"data_engine/{path}" for path in paths if path.suffix != ".pyc" and path.name != "constraints.txt"}
    assert len(wanted) > 10
    assert wanted <= names
    for name in ("page.html.j2", "compare.html.j2", "differing.js", "page.css", "page.js"):
        assert f"data_engine/reporting/{name}" in names
    # Without it, type checkers pass over an installed package.
    assert "data_engine/py.typed" in names
    # Other top-level names, such as `launch` or `kernels`, could overwrite those of other packages.
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"data_engine", "data_engine_kernels"}


def test_the_commands_start_and_validate_where_there_is_no_checkout(programs, place):
    code = "import data_engine; print(data_engine.__file__)"
    assert call(str(programs / "python"), "-c", code, cwd=place).startswith(str(programs.parent))
    told = call(str(programs / "data-engine"), "validate", "--config", "configs/llava-1.5-7b.yaml", cwd=place)
    assert told.startswith("valid: ")


def test_submit_starts_jobs_by_the_scripts_of_the_wheel(programs, place):
    (place / "launch").unlink()
    for name in ("bin", "spool"):
        (place / name).mkdir()
    sbatch = place / "bin/sbatch"
    sbatch.write_text(SBATCH.format(python=sys.executable, spool=str(place / "spool")))
    sbatch.chmod(0o755)
    flags = "--config configs/llava-1.5-7b.yaml --work_dir work --limit 3 --sample_k 4 --rank 2 --max_new_tokens 4"
    flags += " --distance 1000 --dtype float32"
    told = call(
        str(programs / "data-engine"), "submit", *flags.split(), "--array", "1", cwd=place,
        PATH=f"{place}/bin:/usr/bin:/bin", NUM_PROCESSES="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert "array job 7: 1 tasks" in told
    for script in ("array", "pair"):
        log = (place / "spool" / f"{script}.out").read_text()
        assert log.endswith("exit code 0"), log
    assert pq.read_table(place / "work/dataset").num_rows > 0
