"""Does ms-swift train on an export? check_swift.py EXPORT_FOLDER ms-swift[-kto|-rm|-sft] EXPECTED_FOLDER

Its own loader, its own template for every row, and a step of its own trainer, all without `--strict`, as users have
them: rows that it cannot use are then left out without an error.
"""

import json
import os

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")

import checking
import safetensors.torch
import swift
import tiny_llava
from checking import PICTURE, Job, Row
from swift.template import Template

KINDS = {"ms-swift": "dpo", "ms-swift-kto": "kto", "ms-swift-rm": "rm", "ms-swift-sft": "sft"}
MODEL = "llava1_5_hf"
# Earlier answers are not trained, as is the default for pairs.
LAST = "last_round"


def seen(row: dict, template: Template) -> Row:
    """A row as the loader gives it; its pictures as the template opens them."""
    *turns, answer = [(turn["role"], turn["content"]) for turn in row["messages"]]
    images = [template._load_image(image, load_images=True) for image in row["images"] or []]
    if row.get("label") is not None:
        return Row(turns, {"completion": answer[1], "label": bool(row["label"])}, images)
    if "rejected_response" not in row:
        return Row(turns, {"completion": answer[1]}, images)
    cells = {"chosen": answer[1], "rejected": row["rejected_response"]}
    if row.get("margin") is not None:
        cells["margin"] = row["margin"]
    return Row(turns, cells, images)


def require_tokens(encoded: dict, row: Row, image_token: int) -> None:
    for name in ("input_ids", "chosen_input_ids", "rejected_input_ids"):
        if encoded.get(name) is not None:
            checking.require_image_tokens(list(encoded[name]).count(image_token), row, tiny_llava.IMAGE_TOKENS)


def labelled(encoded: dict) -> list[int]:
    """The tokens of a row that are trained."""
    return [label for label in encoded["labels"] if label >= 0]


def train(job: Job, model: str) -> dict:
    kind = KINDS[job.format]
    main, own = (swift.sft_main, {"loss_scale": LAST}) if kind == "sft" else (swift.rlhf_main, {"rlhf_type": kind})
    settings = own | {
        "model": model, "model_type": MODEL, "template": MODEL,
        "dataset": job.folder,
        "tuner_type": "full", "output_dir": job.scratch / "out", "max_steps": 1, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1, "max_length": 4096, "report_to": "none", "use_cpu": True,
        "torch_dtype": "float32", "bf16": False, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 1,
        "save_only_model": True, "create_checkpoint_symlink": False, "gradient_checkpointing": False,
        "freeze_vit": False, "dataloader_num_workers": 0, "split_dataset_ratio": 0.0,
        # Or it asks the network for the newest model of that name, in vain.
        "check_model": False,
    }  # fmt: skip
    command = []
    for name, value in settings.items():
        command += [f"--{name}", json.dumps(value) if isinstance(value, bool) else str(value)]
    result = main(command)
    loss = next(line["loss"] for line in result["log_history"] if "loss" in line)
    before, after = (
        safetensors.torch.load_file(f"{folder}/model.safetensors")
        for folder in (model, result["last_model_checkpoint"])
    )
    checking.require_loss(loss, kind)
    return {"loss": loss, "weights_moved": checking.require_moved(before, after)}


def check(job: Job) -> dict:
    # It keeps what it made of a file under a hash of it, where the next run would find it.
    os.environ.update(MODELSCOPE_CACHE=str(job.scratch / "cache"), USE_HF="1")
    model = str(tiny_llava.save(job.scratch / "model"))
    processor = swift.get_processor(model, model_type=MODEL)
    kind, loss_scale = KINDS[job.format], "default" if job.all_turns else LAST
    template = swift.get_template(processor, max_length=4096, template_type=MODEL, loss_scale=loss_scale)
    template.set_mode({"kto": "kto", "sft": "train"}.get(kind, "rlhf"))
    image_token = processor.tokenizer.convert_tokens_to_ids(PICTURE)
    rows, _ = swift.load_dataset(str(job.folder), num_proc=1)
    as_seen = [seen(row, template) for row in rows]
    figures = {"rows": checking.require_same(as_seen, checking.read_expected(job.expected))}
    for loaded, row in zip(rows, as_seen, strict=True):
        if kind == "kto":
            # Where its trainer puts another row's answer.
            loaded = loaded | {"rejected_response": "Something else."}
        encoded = template.encode(dict(loaded))
        require_tokens(encoded, row, image_token)
        if kind == "sft":
            checking.require_trained(processor.tokenizer.decode(labelled(encoded), skip_special_tokens=True), row)
    return figures if job.load_only else figures | train(job, model)


if __name__ == "__main__":
    checking.main(check, KINDS)
