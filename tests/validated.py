"""What validate is asked in its tests: settings with a mistake in each, flags without one; and what is said of them."""

import json
import shutil
from pathlib import Path

from run_files import hostile_rows, write

from data_engine.commands import main, validate
from data_engine.config import Draft, RunConfig
from data_engine.planning.checks import require_all

# A mistake in the YAML, and what is said of it; FOLDER stands for the test's own.
PLANTED = {
    "topp_k": (7, 'has the unknown key topp_k; did you mean top_k?'),
    "beta": (0, "beta must be above 0, got 0.0"),
    "top_p": (1.5, "top_p must be above 0 and at most 1 (1 is off), got 1.5"),
    "memory_fraction": (0, "memory_fraction must be above 0 and at most 1, got 0.0"),
    "seed": (-1, "seed must be between 0 and 2**63 - 1, got -1"),
    "sample_k": (1, "sample_k must be at least 2 to form a pair, got 1"),
    "distance": (0, "distance must be at least 1, got 0"),
    "max_pairs": (0, "max_pairs must be at least 1, got 0"),
    "length_balance": (-1, "length_balance must be at least 0, got -1.0"),
    "threads": (0, "threads must be at least 1, got 0"),
    "dtype": ("int8", 'dtype must be auto, float32, bfloat16 or float16, got "int8"'),
    "unit_size": ("many", 'unit_size must be a whole number, got "many"'),
    "debug": ("yes", 'debug must be true or false, got "yes"'),
    "device": ("tpu", 'device must be auto, cpu, cuda or cuda:N, got "tpu"'),
    "grace_s": (-1, "grace_s must be at least 0, got -1.0"),
    "shard_index": (5, "shard_index must be between 0 and num_shards - 1, 0, got 5"),
    "near_duplicates": (2, "near_duplicates must be above 0 and at most 1, got 2.0"),
    "length_alpha": ("long", 'length_alpha must be a number or auto, got "long"'),
    "max_megapixels": (-1, "max_megapixels must be above 0, got -1.0"),
    "chat_template": ("FOLDER/no.jinja", 'chat_template "FOLDER/no.jinja" cannot be read: No such file or directory'),
    "chat_template_kwargs": ("[1]", "chat_template_kwargs must be a JSON object like"),
    "strategy": ("crosss", 'crosss'),
    "rank_by": ("implicit.summ", 'rank_by names "implicit.summ", which no source of reward of this run has'),
    "export": ("trl,llama-factry", '--export names the unknown format "llama-factry"; did you mean llama-factory?'),
    "zero3_config": ("FOLDER/no.json", "no.json"),
    "yesno_template": ("FOLDER/no.txt", 'yesno_template "FOLDER/no.txt" cannot be read: No such file or directory'),
    "rule": ("objectss", "objectss"),
    "work_dir": ("FOLDER/q.parquet", 'work_dir "FOLDER/q.parquet": "FOLDER/q.parquet" is a file'),
    "dataset_path": ("FOLDER/no.parquet", 'no file or folder at dataset_path "FOLDER/no.parquet"'),
    "instruct_model_path": ("FOLDER/instruct", "and 5 more weights like these"),
    "reward_model_path": ("FOLDER/empty", '--reward_model_path "FOLDER/empty": FOLDER/empty has no config.json'),
    "min_margin": (2, "min_margin 2.0 is above max_margin 1.0: no pair could be kept"),
}  # fmt: skip


def plant(goldens: Path, folder: Path) -> Path:
    """A YAML in the folder with all of it."""
    write(folder / "q.parquet", hostile_rows()[:2])
    shutil.copytree(goldens / "llava/instruct", folder / "instruct")
    shutil.copytree(goldens / "llava/openai", folder / "openai")
    (folder / "empty").mkdir()
    config = json.loads((folder / "instruct/config.json").read_text())
    # An MLP of another width: three weights of each layer have another shape.
    config["intermediate_size"] += 8
    (folder / "instruct/config.json").write_text(json.dumps(config))
    values = {name: value for name, (value, _) in PLANTED.items()}
    values |= {"rewards": "implicit,yesno,rule", "max_margin": 1}
    here = {name: value.replace("FOLDER", str(folder)) if isinstance(value, str) else value
            for name, value in values.items()}  # fmt: skip
    (folder / "planted.yaml").write_text(json.dumps(here))
    return folder / "planted.yaml"


def flags_of(goldens: Path, folder: Path) -> dict[str, str]:
    """Flags of a run without a mistake."""
    flags = {f"{role}_model_path": str(goldens / "llava" / role) for role in ("instruct", "reward")}
    return flags | {
        "dataset_path": str(write(folder / "q.parquet", hostile_rows()[:2])), "work_dir": str(folder / "work"),
        "device": "cpu",
    }  # fmt: skip


def words(job: dict[str, str], **changed: str) -> list[str]:
    return [f"--{name}={value}" for name, value in (job | changed).items()]


def told(capsys, *arguments: str) -> dict:
    """What validate tells as JSON; its exit code must be that of what it tells."""
    code = main.main(["validate", "--json", *arguments])
    found = json.loads(capsys.readouterr().out)
    assert code == (2 if found["problems"] else 0)
    return found


def told_by(command: str, capsys, *arguments: str) -> list[str]:
    """The lines of standard error of a command that is refused."""
    assert main.main([command, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.splitlines()


def checked(config: RunConfig) -> str:
    """What `validate` tells of a configuration. Raises UserError for a mistake, UserErrors for several."""
    return validate.describe(require_all(Draft(config, [], frozenset())))
