"""What people are told of each format: what it is, its columns, and the command that trains on it.

The card of an export shows it, and docs/exports.md has the same commands. EXPORT stands for the export's folder, MODEL
for the instruct model.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """One format, for a person."""

    sentence: str
    columns: tuple[tuple[str, str], ...] = ()
    """(name, meaning)"""
    command: str = ""
    """Markdown: a block of code, and the settings that matter"""


IDX = ("idx", "the question's id in the dataset that was sampled")
IMAGE = ("image", "bytes and path of the picture, as the models saw it")
IMAGES = ("images", "bytes of the pictures, as the models saw them")
_SIDES = (("chosen", "the better answer"), ("rejected", "the worse answer"))
_PROMPT = ("prompt", "messages: role, and parts of text and pictures")
_MARGIN = (
    "margin",
    "reward of chosen minus reward of rejected, by the first reward that ranks: summed over tokens, by default",
)
_SYSTEM = ("system", "the system text; empty where there is none")
_ALL_TURNS = "all turns, the best answer last; `<image>` where a picture stands"
_LABEL = ("label", "true: chosen in a pair; false: rejected in a pair")

_TRL = """```python
import datasets
import trl

rows = datasets.load_dataset("EXPORT", split="train")
arguments = trl.{name}Config(output_dir="out", max_length=None)
trl.{name}Trainer(model="MODEL", args=arguments, train_dataset=rows).train()
```

`max_length=None` matters: TRL cuts the end of a row at 1,024 tokens, pictures included, and so the answer."""
_SWIFT = """```bash
{command} --model MODEL --dataset EXPORT --strict true
```

`--strict true` matters: without it ms-swift leaves out rows that it cannot use, without an error."""
_FACTORY = """```bash
llamafactory-cli train --stage {stage} --do_train true --model_name_or_path MODEL --template TEMPLATE \\
  --dataset_dir EXPORT --media_dir EXPORT --dataset {name} --finetuning_type lora --output_dir out --cutoff_len 4096
```

TEMPLATE is LLaMA-Factory's name for the model's prompt, as in `llava` or `qwen2_vl`. Questions and answers are cut to
`cutoff_len` tokens, pictures included. Where a row has no system text, that of the template is used."""

USAGES = {
    "rlaif-v": Usage(
        "Pairs of one picture and one question, as RLAIF-V's trainer reads them.",
        (IDX, ("question", "without a marker for the picture"), *_SIDES, IMAGE),
        "The columns `ds_name`, `origin_dataset` and `image_path` are there, too, where the questions have them.\n"
        "RLAIF-V's trainer reads the folder as its data directory with its pull request 37. Its main branch is\n"
        "without it, and would load its own dataset from the hub instead: export `rlaif-v-logps` for that branch.\n"
        "ms-swift reads the folder too:\n\n"
        "```bash\nswift rlhf --rlhf_type dpo --model MODEL --dataset EXPORT --strict true \\\n"
        '  --columns \'{"chosen": "response", "rejected": "rejected_response"}\'\n```',
    ),
    "rlaif-v-logps": Usage(
        "Pairs for RLAIF-V's trainer with the reference model's log-probs, which save it a pass over the data.",
        (IDX, ("question", "without a marker for the picture"), *_SIDES, IMAGE,
         ("logps", "JSON: sum, mean and log-probs a token of chosen, then of rejected; those a token are zeros"),
         ("ds_name, origin_dataset, origin_split, image_path", "required by the trainer; empty where not known")),
        "The folder is the data directory of RLAIF-V's trainer, of its main branch and of pull request 37.\n"
        "The reference model is the instruct model of the run, a LLaVA-1.5: train that one. Keep the script's\n"
        "`--model_max_length 2048` and `--image_aspect_ratio`. Pairs whose log-probs the trainer would compute\n"
        "otherwise are left out: answers that were cut off, rewritten texts, texts that read back as other tokens.",
    ),
    "trl": Usage(
        "Pairs for TRL's DPOTrainer.",
        (_PROMPT, *_SIDES, IMAGES, IDX, _MARGIN),
        _TRL.format(name="DPO"),
    ),
    "trl-kto": Usage(
        "Answers with a label for TRL's KTOTrainer; no two answers to one question follow each other.",
        (_PROMPT, ("completion", "the answer"), _LABEL, IMAGES, IDX),
        _TRL.format(name="KTO")
        + "\n\nKTO compares an answer with the prompt of the row beside it: keep the order, or shuffle by question.",
    ),
    "sft": Usage(
        "The best answer to each question by the rewards (best of n), for TRL's SFTTrainer.",
        (_PROMPT, ("completion", "the best answer"), IMAGES, IDX),
        _TRL.format(name="SFT"),
    ),
    "llama-factory": Usage(
        "Pairs for LLaMA-Factory's DPO, ORPO and SimPO.",
        (("conversations", "the turns before the answer; `<image>` where a picture stands"), _SYSTEM, *_SIDES,
         ("images", "paths under the folder")),
        _FACTORY.format(stage="dpo", name="data_engine_dpo"),
    ),
    "llama-factory-kto": Usage(
        "Answers with a label for LLaMA-Factory's KTO; no two answers to one question follow each other.",
        (("conversations", "all turns, the answer last; `<image>` where a picture stands"), _SYSTEM,
         ("kto_tag", "true: chosen in a pair; false: rejected in a pair"), ("images", "paths under the folder")),
        _FACTORY.format(stage="kto", name="data_engine_kto"),
    ),
    "llama-factory-sft": Usage(
        "The best answer to each question by the rewards (best of n), for LLaMA-Factory's SFT.",
        (("conversations", _ALL_TURNS), _SYSTEM, ("images", "paths under the folder")),
        _FACTORY.format(stage="sft --mask_history true", name="data_engine_sft")
        + "\n\n`--mask_history true` matters: without it earlier answers of a conversation are trained, too.",
    ),
    "ms-swift": Usage(
        "Pairs for ms-swift's DPO, ORPO, CPO and SimPO.",
        (("messages", "all turns, the better answer last; `<image>` where a picture stands"),
         ("rejected_response", "the worse answer"), IMAGES),
        _SWIFT.format(command="swift rlhf --rlhf_type dpo"),
    ),
    "ms-swift-kto": Usage(
        "Answers with a label for ms-swift's KTO.",
        (("messages", "all turns, the answer last; `<image>` where a picture stands"), _LABEL, IMAGES),
        _SWIFT.format(command="swift rlhf --rlhf_type kto")
        + "\n\nKTO compares an answer with the prompt of another row. In the file no two answers to one question\n"
        "follow each other, but ms-swift shuffles the rows again, so that two may meet.",
    ),
    "ms-swift-rm": Usage(
        "Pairs with the margin of their rewards for ms-swift's reward model.",
        (("messages", "all turns, the better answer last; `<image>` where a picture stands"),
         ("rejected_response", "the worse answer"),
         ("margin", "reward of the better answer minus that of the worse, by the first reward that ranks; 0 at least"),
         IMAGES),
        _SWIFT.format(command="swift rlhf --rlhf_type rm")
        + "\n\nThe loss asks the better answer's score to exceed the worse one's by the margin. By default that is\n"
        "beta times a difference of log-probs, summed over tokens: large margins make large losses.",
    ),
    "ms-swift-sft": Usage(
        "The best answer to each question by the rewards (best of n), for ms-swift's SFT.",
        (("messages", _ALL_TURNS), IMAGES),
        _SWIFT.format(command="swift sft --loss_scale last_round")
        + "\n\n`--loss_scale last_round` matters: without it earlier answers of a conversation are trained, too.",
    ),
    "internvl-mpo": Usage(
        "Pairs of pictures and one question for InternVL's MPO trainer.",
        (("image", "path, or a list of them"), ("question", "`<image>` for each of several pictures"), *_SIDES),
        "Name `EXPORT/meta.json` as `--meta_path`, and start the trainer in EXPORT, since root and annotation in it\n"
        "are relative; `PYTHONPATH` is then its folder `internvl_chat`. Leave `--group_by_length` off: it reads a\n"
        "column that such rows do not have.",
    ),
    "llava-next": Usage(
        "Pairs of one picture and one question for LLaVA-NeXT's DPO, and for that of Qwen-VL-Series-Finetune.",
        (("id", "the question's id in the dataset that was sampled"), ("image", "path under the folder"),
         ("prompt", "the question behind `<image>` and a line break"),
         ("answer", "empty; LLaVA-NeXT asks for the column"), *_SIDES),
        "Give `--data_path EXPORT/data.json` and `--image_folder EXPORT` to `llava/train/train_dpo.py` of LLaVA-NeXT,\n"
        "as in its `scripts/train/dpo_ov7b.sh`, or to `src/train/train_dpo.py` of Qwen-VL-Series-Finetune (by 2U1),\n"
        "as in its `scripts/finetune_dpo.sh`. LLaVA-NeXT reads no file whose path has `jsonl` in it. Neither has a\n"
        "place for a system text: pairs of questions that were asked with one are left out.",
    ),
    "scored": Usage(
        "Every answer that was sampled, with its token ids, rewards and places, for analysis and for other trainers.",
        (IDX, ("sample_index", "number of the answer to its question"), ("question", "as in the dataset"),
         ("answer, token_ids, finish_reason", "as sampled"), 
         ("sum, avg, min, last", "rewards of `implicit`; empty in a run without it"),
         ("sum_rank, avg_rank", "places among the answers to the question, from 1"),
         ("not_ranked", "why it has no place"), ("image_path", "what the dataset calls the picture")),
        "```python\nfrom glob import glob\n\nimport pyarrow.parquet as pq\n\n"
        'table = pq.read_table(sorted(glob("EXPORT/**/*.parquet", recursive=True)))\n```\n\n'
        "Texts are as sampled, without pictures. Each other reward of the run has a column of its name, and\n"
        "each name of `--rank_by` one of places (`NAME_rank`).",
    ),
}  # fmt: skip


def usage_of(name: str) -> Usage:
    """What is known of a format; a new one may have nothing here yet."""
    return USAGES.get(name, Usage(f"Pairs in the format {name}."))
