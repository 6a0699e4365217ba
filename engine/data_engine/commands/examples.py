"""Two whole command lines a command, which end its --help. This table is the one place that has them."""

import argparse

CONFIG = "--config configs/llava-1.5-7b.yaml"
WORK_DIR = "runs/llava-1.5-7b"

# Command: (what it does, command line), twice.
EXAMPLES = {
    "run": (
        ("a first try: four questions, short answers", f"data-engine run {CONFIG} --limit 4 --max_new_tokens 32 "
         "--work_dir runs/first-try"),
        ("without a file of settings", "data-engine run --instruct_model_path llava-hf/llava-1.5-7b-hf "
         "--reward_model_path models/llava-dpo --dataset_path data/questions.parquet --work_dir runs/own"),
    ),
    "validate": (
        ("before a run, with the flags of the run", f"data-engine validate {CONFIG}"),
        ("how long it will take, from a minute of its own work", f"data-engine validate {CONFIG} --measure"),
    ),
    "submit": (
        ("four jobs, and one that pairs", f"data-engine submit {CONFIG} --array 4 "
         '--sbatch "--partition gpu --gres gpu:8 --time 12:00:00" --sbatch_pair "--gres none"'),
        ("one GPU a job", f'data-engine submit {CONFIG} --work_dir runs/array --array 16 --sbatch "--gres gpu:1"'),
    ),
    "status": (
        ("a screen that looks again every 30 seconds, until the dataset is written",
         f"data-engine status {WORK_DIR} --watch 30"),
        ("one JSON object, for programs", f"data-engine status {WORK_DIR} --json"),
    ),
    "pairs": (
        ("pairs that two rewards agree on", f"data-engine pairs {WORK_DIR} --name agreed --strategy best_worst "
         "--rank_by implicit.avg,contrast.avg"),
        ("pairs of a large margin alone, one a question", f"data-engine pairs {WORK_DIR} --name clear --min_margin 0.5 "
         "--max_pairs 1"),
    ),
    "export": (
        ("for two trainers", f"data-engine export {WORK_DIR} --format trl,llama-factory --output datasets/llava"),
        ("to the Hugging Face hub", f"data-engine export {WORK_DIR} --format trl --push_to_hub OWNER/NAME "
         "--license cc-by-4.0 --private"),
    ),
    "report": (
        ("of the run's own pairs, in a browser", f"data-engine report {WORK_DIR} --open"),
        ("two pairings side by side", f"data-engine report {WORK_DIR} --compare agreed"),
    ),
    "bench": (
        ("some minutes, on the CPU", "data-engine bench --quick"),
        ("your checkpoint, and what 50,000 questions would take", "data-engine bench --model models/llava-v1.5-7b "
         "--device auto --questions 50000"),
    ),
}  # fmt: skip


def shown(command: str) -> str:
    """The end of a command's help."""
    return "examples:\n" + "\n".join(f"  # {what}\n  {line}" for what, line in EXAMPLES[command])


class Parser(argparse.ArgumentParser):
    """A command's parser, whose help ends with its examples; the last word of `prog` is the command."""

    def format_help(self) -> str:
        return f"{super().format_help()}\n{shown(self.prog.split()[-1])}\n"
