"""Does TRL train on an export? check_trl.py EXPORT_FOLDER trl|trl-kto|sft EXPECTED_FOLDER

Loaded as a user would, by `load_dataset(EXPORT_FOLDER)`, and handed to TRL's trainer as it is.
"""

import os

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")

import checking
import datasets
import tiny_llava
import transformers
import trl
from checking import PICTURE, Job, Row, Wrong

TRAINERS = {
    "trl": ("dpo", trl.DPOConfig, trl.DPOTrainer),
    "trl-kto": ("kto", trl.KTOConfig, trl.KTOTrainer),
    "sft": ("sft", trl.SFTConfig, trl.SFTTrainer),
}
ANSWERS = ("chosen", "rejected", "completion")


def text_of(content: str | list[dict]) -> str:
    if isinstance(content, str):
        return content
    return "".join(PICTURE if part["type"] == "image" else part["text"] for part in content)


def turns_of(row: dict) -> list[tuple[str, str]]:
    """The prompt; TRL puts the pictures before the first user text where a row has no parts for them."""
    turns = [(turn["role"], text_of(turn["content"])) for turn in row["prompt"]]
    if not any(PICTURE in text for _, text in turns):
        first = [role for role, _ in turns].index("user")
        turns[first] = ("user", PICTURE * len(row["images"]) + turns[first][1])
    return turns


def seen(row: dict) -> Row:
    cells = {}
    for name in ANSWERS:
        if name in row:
            if [turn["role"] for turn in row[name]] != ["assistant"]:
                raise Wrong(f"{name} is not one turn of the assistant: {row[name]}")
            cells[name] = text_of(row[name][0]["content"])
    if "label" in row:
        cells["label"] = row["label"]
    return Row(turns_of(row), cells, row["images"])


def train(job: Job, rows: datasets.Dataset) -> dict:
    kind, make_config, make_trainer = TRAINERS[job.format]
    # max_length: by default TRL cuts the end off long rows, where the answer is.
    config = make_config(
        output_dir=str(job.scratch / "out"), max_steps=1, per_device_train_batch_size=2, max_length=None, use_cpu=True,
        bf16=False, report_to=[], save_strategy="no", logging_steps=1, learning_rate=1e-2, disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    model = str(tiny_llava.save(job.scratch / "model"))
    processor = transformers.AutoProcessor.from_pretrained(model)
    trainer = make_trainer(model=model, args=config, train_dataset=rows, processing_class=processor)
    # Trainers drop columns on this way only.
    image_token = processor.tokenizer.convert_tokens_to_ids(PICTURE)
    image_tokens = sum(int((batch["input_ids"] == image_token).sum()) for batch in trainer.get_train_dataloader())
    sides = 2 if kind == "dpo" else 1
    wanted = sides * tiny_llava.IMAGE_TOKENS * sum(len(images) for images in rows["images"])
    if image_tokens != wanted:
        raise Wrong(f"{image_tokens} image tokens in the batches, expected {wanted}")
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    loss = checking.require_loss(trainer.train().training_loss, kind)
    return {"loss": loss, "weights_moved": checking.require_moved(before, dict(trainer.model.named_parameters()))}


def check(job: Job) -> dict:
    transformers.logging.set_verbosity_error()
    rows = datasets.load_dataset(str(job.folder), split="train", cache_dir=str(job.scratch / "cache"))
    as_seen = [seen(row) for row in rows]
    figures = {"rows": checking.require_same(as_seen, checking.read_expected(job.expected))}
    return figures if job.load_only else figures | train(job, rows)


if __name__ == "__main__":
    checking.main(check, TRAINERS)
