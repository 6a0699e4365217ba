"""What trainers make of the dataset that a run writes."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from data_engine.config import RunConfig
from data_engine.job import worker

CHAT = """{%- for m in messages %}{% if m.role == 'user' %}USER: {% else %}ASSISTANT: {% endif %}
{%- for c in m.content %}{% if c.type == 'image' %}<image>
{% else %}{{ c.text }}{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"""


@pytest.fixture(scope="module")
def work_dir(goldens, tmp_path_factory, one_thread) -> Path:
    """A run on the golden questions, all three stages."""
    work_dir = tmp_path_factory.mktemp("trainers") / "work"
    paths = {"instruct_model_path": goldens / "llava/instruct", "reward_model_path": goldens / "llava/reward"}
    paths |= {"dataset_path": goldens / "llava/dataset/questions.parquet", "work_dir": work_dir}
    settings = {"sample_k": 4, "rank": 2, "distance": 1000, "max_new_tokens": 8, "threads": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.Stop, "listen", lambda stop: stop)
        assert worker.run(RunConfig(**{name: str(path) for name, path in paths.items()} | settings)) == 0
    return work_dir


def test_the_folder_and_its_columns_are_what_the_rlaif_v_trainer_reads(work_dir):
    files = list((work_dir / "dataset").iterdir())
    assert [file.name for file in files] == ["dpo_dataset.parquet"]
    rows = pq.read_table(files[0]).to_pylist()
    assert rows
    for row in rows:
        assert set(row) >= {"idx", "question", "chosen", "rejected", "image"}
        assert not set(row) & {"logps", "origin_split"}
        assert set(row["image"]) == {"bytes", "path"}
        assert row["image"]["bytes"]
        assert row["chosen"].strip()
        assert row["rejected"].strip()
        assert "<image>" not in row["question"]


def test_datasets_loads_the_folder_and_the_file(work_dir, tmp_path):
    import datasets

    by_file = datasets.load_dataset(
        "parquet", data_files=str(work_dir / "dataset/dpo_dataset.parquet"), split="train", cache_dir=str(tmp_path)
    )
    by_folder = datasets.load_dataset(str(work_dir / "dataset"), split="train", cache_dir=str(tmp_path))
    assert by_file["chosen"] == by_folder["chosen"]
    assert len(by_file) == pq.read_metadata(work_dir / "dataset/dpo_dataset.parquet").num_rows


@pytest.fixture
def tiny_llava(goldens, tmp_path):
    """A random LLaVA of transformers and its processor, with the golden tokenizer's pieces."""
    import tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )  # fmt: skip

    words = tokenizers.Tokenizer(
        tokenizers.models.BPE({chr(i): i + 4 for i in range(256)} | {"<unk>": 0}, [], unk_token="<unk>")
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    crop = {"height": 56, "width": 56}
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=crop)
    processor = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT,
    )  # fmt: skip
    torch.manual_seed(0)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 32}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=56, patch_size=14, **layers),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **layers),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    # By way of a folder, since the trainer loads the reference model from where the policy came from.
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "tiny")
    return LlavaForConditionalGeneration.from_pretrained(tmp_path / "tiny"), processor


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_step_of_trls_vision_dpo_trains_on_it(work_dir, tmp_path, tiny_llava):
    import datasets
    from trl import DPOConfig, DPOTrainer

    rows = datasets.load_dataset(
        "parquet", data_files=str(work_dir / "dataset/*.parquet"), split="train", cache_dir=str(tmp_path)
    )

    def conversation(row: dict) -> dict:
        user = [{"type": "image"}, {"type": "text", "text": row["question"]}]
        return {
            "prompt": [{"role": "user", "content": user}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": row["chosen"]}]}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": row["rejected"]}]}],
            "images": [row["image"]],
        }

    examples = rows.map(conversation, remove_columns=rows.column_names)
    examples = examples.cast_column("images", datasets.List(datasets.Image()))
    model, processor = tiny_llava
    before = {name: value.clone() for name, value in model.named_parameters()}
    arguments = DPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, max_length=None, use_cpu=True,
        report_to=[], save_strategy="no", learning_rate=1e-2, bf16=False,
    )  # fmt: skip
    trainer = DPOTrainer(model=model, args=arguments, train_dataset=examples, processing_class=processor)
    result = trainer.train()
    # With the policy still equal to its reference, DPO's loss is ln 2 for any pair.
    assert result.training_loss == pytest.approx(0.693147, abs=1e-3)
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert any("language_model" in name for name in moved)
