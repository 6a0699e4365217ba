"""A processor that needs a package which is not installed: what the command line says."""

import json

import chat_folders
import torch
from run_files import hostile_rows, write
from safetensors.torch import save_file

from data_engine.commands.main import main


def test_a_processor_that_needs_torchvision_is_refused_with_the_line_to_install_it(tmp_path, capsys):
    folder = chat_folders.saved(chat_folders.qwen3_vl(), tmp_path / "model")
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    for name, fields in (
        ("config.json", {"model_type": "cohere2_vision"}),
        ("processor_config.json", {"processor_class": "Cohere2VisionProcessor",
                                   "image_processor": {"image_processor_type": "Cohere2VisionImageProcessor"}}),
    ):  # fmt: skip
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))
    flags = ["--dataset_path", str(write(tmp_path / "questions.parquet", hostile_rows()[:1])),
             "--work_dir", str(tmp_path / "work")]  # fmt: skip
    for command in ("validate", "run"):
        models = [f"--{role}_model_path={folder}" for role in ("instruct", "reward")]
        assert main([command, *models, *flags]) == 2
        told = capsys.readouterr().err
        both = f'--instruct_model_path "{folder}" and --reward_model_path "{folder}"'
        assert f"{both}: the processor of {folder} needs torchvision: pip install" in told
        assert "Traceback" not in told
