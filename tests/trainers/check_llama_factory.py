"""Does LLaMA-Factory train on an export? check_llama_factory.py EXPORT_FOLDER llama-factory[-kto|-sft] EXPECTED_FOLDER

Its own reading of dataset_info.json, its own template for every row, and a step of its own trainer.
"""

import hashlib
import json
import os
import sys
from collections import Counter

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
# Its own check of versions looks for torchaudio and others, too.
os.environ.update(DISABLE_VERSION_CHECK="1")

import checking
import no_torchaudio  # noqa: F401, before llamafactory
import safetensors.torch
import tiny_llava
from checking import PICTURE, Job, Row, Wrong
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer, loader
from llamafactory.data.template import Template
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
from llamafactory.train.tuner import run_exp

# The entry of dataset_info.json, the stage of training, and the stage as which it loads that.
KINDS = {
    "llama-factory": ("data_engine_dpo", "dpo", "rm"),
    "llama-factory-kto": ("data_engine_kto", "kto", "kto"),
    "llama-factory-sft": ("data_engine_sft", "sft", "sft"),
}


def settings_of(job: Job, model: str) -> dict:
    dataset, stage, _ = KINDS[job.format]
    return {
        "stage": stage, "do_train": True, "model_name_or_path": model, "dataset": dataset,
        "mask_history": stage == "sft" and not job.all_turns,
        "dataset_dir": str(job.folder), "template": "llava", "finetuning_type": "full",
        "output_dir": str(job.scratch / "out"), "cache_dir": str(job.scratch / "cache"), "max_steps": 1,
        "per_device_train_batch_size": 2, "cutoff_len": 4096, "report_to": "none", "use_cpu": True, "bf16": False,
        "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "overwrite_cache": True,
        "dataloader_num_workers": 0, "disable_gradient_checkpointing": True,
    }  # fmt: skip


def require_folder(job: Job) -> None:
    """Require what its loader does not look at itself: the encoding of dataset_info.json, and each picture once."""
    if not (job.folder / "dataset_info.json").read_bytes().isascii():
        raise Wrong("dataset_info.json is not ASCII: it is read in the encoding of the user's locale")
    files = [path.read_bytes() for path in (job.folder / "images").rglob("*") if path.is_file()]
    times = Counter(hashlib.sha256(data).digest() for data in files)
    if len(times) < len(files):
        raise Wrong(f"{len(files)} files of pictures, of which {len(times)} differ")


def seen(row: dict, stage: str, template: Template) -> Row:
    """A row as the loader aligns it; its pictures as the template's plugin opens them."""
    turns = [(turn["role"], turn["content"]) for turn in row["_prompt"]]
    if row["_system"]:
        turns.insert(0, ("system", row["_system"]))
    answers = [turn["content"] for turn in row["_response"]]
    if stage == "sft":
        cells = {"completion": answers[0]}
    elif stage == "kto":
        cells = {"completion": answers[0] or answers[1], "label": bool(answers[0])}
    else:
        cells = dict(zip(("chosen", "rejected"), answers, strict=True))
    limits = {"image_max_pixels": sys.maxsize, "image_min_pixels": 1}
    images = template.mm_plugin._regularize_images(row["_images"] or [], **limits)["images"]
    return Row(turns, cells, images)


def require_tokens(encoded: dict, row: Row, image_token: int) -> None:
    for name in ("input_ids", "kl_input_ids", "chosen_input_ids", "rejected_input_ids"):
        if name in encoded:
            checking.require_image_tokens(encoded[name].count(image_token), row, tiny_llava.IMAGE_TOKENS)


def train(job: Job, settings: dict) -> dict:
    run_exp(settings)
    lines = [json.loads(line) for line in (job.scratch / "out/trainer_log.jsonl").read_text().splitlines()]
    loss = next(line["loss"] for line in lines if "loss" in line)
    folders = (settings["model_name_or_path"], settings["output_dir"])
    before, after = (safetensors.torch.load_file(f"{folder}/model.safetensors") for folder in folders)
    checking.require_loss(loss, settings["stage"])
    return {"loss": loss, "weights_moved": checking.require_moved(before, after)}


def check(job: Job) -> dict:
    require_folder(job)
    settings = settings_of(job, str(tiny_llava.save(job.scratch / "model")))
    model_args, data_args, training_args, _, _ = get_train_args(dict(settings))
    stage = KINDS[job.format][2]
    tokenizer = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer["tokenizer"], data_args)
    # First all that it does to the rows itself, so that what it refuses is told in its own words.
    encoded = get_dataset(template, model_args, data_args, training_args, stage=stage, **tokenizer)["train_dataset"]
    rows = loader._get_merged_dataset(data_args.dataset, model_args, data_args, training_args, stage)
    # It drops rows without an answer later, with a warning.
    as_seen = [seen(row, stage, template) for row in rows if row["_response"]]
    figures = {"rows": checking.require_same(as_seen, checking.read_expected(job.expected))}
    if stage == "kto":
        checking.require_apart(as_seen)
    image_token = tokenizer["tokenizer"].convert_tokens_to_ids(PICTURE)
    for tokens, row in zip(encoded, as_seen, strict=True):
        require_tokens(tokens, row, image_token)
        if stage == "sft":
            trained = [label for label in tokens["labels"] if label != IGNORE_INDEX]
            checking.require_trained(tokenizer["tokenizer"].decode(trained, skip_special_tokens=True), row)
    return figures if job.load_only else figures | train(job, settings)


if __name__ == "__main__":
    checking.main(check, KINDS)
