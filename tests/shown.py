"""What README.md and docs/*.md show in fenced blocks: command lines, and snippets of Python, JSON and YAML.

tests/docs/test_shown.py runs all of it as it stands, but for what ELSEWHERE lists: where that is run instead, and why.
A new block is run without a word here.
"""

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from data_engine.commands import bench, export, loop, pairs, submit, validate
from data_engine.commands.arguments import own_options, parse
from data_engine.commands.main import COMMANDS, main

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("bash", "sh")
# Names that stand for the reader's own.
STAND_INS = {"WORK_DIR": "runs/llava-1.5-7b", "runs/demo/work": "runs/llava-1.5-7b", "EXPORT": "exported"}


@dataclass(frozen=True)
class Shown:
    """A command line, or a whole snippet of another kind."""

    page: str
    kind: str
    text: str

    @property
    def elsewhere(self) -> "Elsewhere | None":
        """Where it is run, if not by tests/docs/test_shown.py."""
        return next((one for one in ELSEWHERE if one.means(self)), None)


@dataclass(frozen=True)
class Elsewhere:
    """What begins like this, on a page or on all (*), is run by a test of that name, or by none; and why."""

    page: str
    beginning: str
    by: str | None
    why: str

    def means(self, shown: Shown) -> bool:
        return self.page in ("*", shown.page) and shown.text.startswith(self.beginning)


def lines(body: str) -> list[str]:
    """The command lines of a block, without comments."""
    joined = body.replace("\\\n", " ")
    found = (re.split(r"(?:^|\s+)# ", line)[0].strip() for line in joined.splitlines())
    return [" ".join(line.split()) for line in found if line]


def shown_in(text: str, page: str) -> list[Shown]:
    found = []
    for kind, body in FENCE.findall(text):
        found += [Shown(page, kind or "text", one) for one in (lines(body) if kind in SHELL else [body])]
    return found


STEP = "test_every_row_is_loaded_and_a_step_moves_the_weights"
VLLM = "tests/by_vllm/test_vllm_two_engines.py::test_two_engines_share_a_run_and_stop_at_a_signal"
TRL = "tests/docs/test_docs_exports.py::test_the_python_is_that_of_the_trainer"
PUSHED = "tests/exports/test_export_push.py::test_one_format_arrives_with_its_card_and_nothing_stays_behind"
RIGHT_ALONE = "tests/rewards/test_reward_rule.py::test_the_best_answers_that_are_exported_can_be_right_ones_alone"
DEMO = "tests/docs/test_readme.py::test_the_demo_shows_that_chosen_answers_hallucinate_far_less"
CRITIC = "tests/docs/test_shown.py::test_the_template_of_a_critic_is_read"
BATCH = "tests/job/test_given_answers.py::test_answers_are_taken_out_of_a_batch_as_the_page_shows"
PUBLISHED = (
    ("import json\nfrom pathlib import Path\n\nrows", "test_the_first_turn_of_a_conversation_is_asked"),
    ("from pathlib import Path\n\nimport pyarrow as pa\nimport pyarrow.parquet as pq\n\nPath(\"data/onevision",
     "test_the_first_turn_of_a_parquet_file_is_a_column"),
    ("import json\nfrom pathlib import Path\n\nPath", "test_a_chat_is_asked_without_the_answer_at_its_end"),
    ("import ast", "test_pictures_of_several_columns_stand_where_the_text_names_them"),
    ("import json\nfrom pathlib import Path\n\nfound", "test_questions_of_vqav2_are_about_their_pictures"),
    ("import tarfile", "test_pictures_of_tar_files_are_asked_about"),
)  # fmt: skip
TWO_RUNS = "tests/job/test_given_answers.py::test_answers_of_two_runs_are_put_together_as_the_page_shows"
ASPECTS = "tests/rewards/test_reward_aspects.py::test_the_commands_of_the_page_judge_and_pair_by_its_templates"
SCORES = "tests/rewards/test_reward_rule.py::test_scores_of_ones_own_become_rewards_as_the_page_shows"
RATED = "tests/rewards/test_rule_aspects.py::test_ratings_of_several_aspects_become_rewards_as_the_page_shows"
BENCH = "tests/bench/test_bench.py::test_a_checkpoint_that_transformers_cannot_load_is_timed_alone"
HUB = "tests/docs/test_shown.py::test_the_hubs_program_has_the_flags_that_are_shown"
LISTING = "tests/docs/test_shown.py::test_the_listing_of_a_finished_run_is_what_is_there"
SLURM = "tests/distributed/test_slurm.py"
ARRAY = f"{SLURM}::test_tasks_requeued_warned_and_killed_with_their_node_make_the_same_dataset"
LOOP = f"{SLURM}::test_a_loop_that_is_warned_while_it_trains_goes_on"
TWO_NODES = f"{SLURM}::test_one_job_over_two_nodes_warned_once_makes_the_same_dataset"
MEASURED = "tests/planning/test_plan_measure.py"
ROUNDS = "tests/trainers/test_trainer_rounds.py::test_a_loop_trains_by_the_script_of_the_page"
MINUTES = "it takes minutes"
APART = "it has an environment of its own"

# The examples of docs/adding.md: the first line of a file, the beginning of the line of a table, and the test.
ADDED = (
    ("# engine/data_engine/rewards/length.py", '"length": ', "tests/rewards/test_reward_seam.py"),
    ("# engine/data_engine/sampling/counting.py", '"counting": ', "tests/sampling/test_backend_seam.py"),
    ("# engine/data_engine/exports/formats/lines.py", '"lines": ', "tests/exports/test_export_seam.py"),
    (
        "# engine/data_engine/preferences/strategies/neighbours.py",
        '"neighbours": ',
        "tests/preferences/test_strategy_seam.py",
    ),
    ("# engine/data_engine/models/native/loud.py", '"loud": ', "tests/models/test_family_seam.py"),
)
ELSEWHERE = (
    Elsewhere("README.md", "make demo", DEMO, "it has numbers to look at"),
    Elsewhere("README.md", "make test", None, "it is what runs this"),
    Elsewhere("README.md", ". .venv/bin/activate", None, "the tests' own programs are on the path already"),
    Elsewhere("*", "hf ", HUB, "no test asks the network for anything"),
    Elsewhere("*", "data-engine bench", BENCH, MINUTES),
    Elsewhere("docs/real-runs.md", "data-engine submit", ARRAY, "it needs a SLURM"),
    Elsewhere("docs/real-runs.md", "data-engine status runs/array", ARRAY, "it needs a SLURM"),
    Elsewhere("docs/real-runs.md", "sbatch", TWO_NODES, "it needs a SLURM"),
    Elsewhere("docs/real-runs.md", "runs/llava-1.5-7b/\n", LISTING, "it is what the commands above it leave"),
    Elsewhere("docs/watching.md", "runs/llava  ", "tests/watching/test_status_screen.py", "a terminal shows it"),
    Elsewhere("docs/watching.md", "data-engine status runs/demo/work --json |", None, "jq is not on every machine"),
    Elsewhere(
        "docs/real-runs.md", "data-engine validate --config configs/llava-1.5-7b.yaml --measure", MEASURED, MINUTES
    ),
    Elsewhere(
        "docs/plan.md", "data-engine validate --config configs/demo.yaml", MEASURED, "it is about the demo's folders"
    ),
    Elsewhere("docs/loop.md", "data-engine loop", ROUNDS, "it trains"),
    Elsewhere("docs/loop.md", "sbatch", LOOP, "it needs a SLURM"),
    Elsewhere("docs/loop.md", "# train.py", ROUNDS, "it trains"),
    Elsewhere("docs/vllm.md", "launch/run_engine.sh", VLLM, APART),
    Elsewhere("docs/exports.md", "data-engine export WORK_DIR --format trl --push", PUSHED, "the hub has a stand-in"),
    Elsewhere("docs/exports.md", "data-engine export WORK_DIR --format sft --min", RIGHT_ALONE, "it is about a rule"),
    Elsewhere("docs/exports.md", "swift rlhf", f"tests/trainers/test_trainer_swift.py::{STEP}", APART),
    Elsewhere("docs/exports.md", "swift sft", f"tests/trainers/test_trainer_swift.py::{STEP}", APART),
    Elsewhere("docs/exports.md", "llamafactory-cli", f"tests/trainers/test_trainer_llama_factory.py::{STEP}", APART),
    Elsewhere("docs/exports.md", "import datasets\nimport trl\n", TRL, "it trains, as tests/trainers does"),
    Elsewhere(
        "docs/given-answers.md", "data-engine run --dataset_path data/rated", RATED, "it names the files above it"
    ),
    Elsewhere(
        "docs/given-answers.md", "data-engine run --dataset_path data/scored", SCORES, "it names the files above it"
    ),
    Elsewhere("docs/given-answers.md", "import json\n\nwith open", BATCH, "it reads what an API gave"),
    *(
        Elsewhere("docs/datasets.md", beginning, f"tests/docs/test_published_datasets.py::{test}", "it reads downloads")
        for beginning, test in PUBLISHED
    ),
    Elsewhere("docs/given-answers.md", "import pyarrow as pa\n", TWO_RUNS, "it reads two runs"),
    Elsewhere("docs/rewards.md", "data-engine run", ASPECTS, "it names files of the page"),
    Elsewhere("docs/rewards.md", "data-engine pairs", ASPECTS, "it is about that run"),
    Elsewhere("docs/rules.md", "prompt: |-\n", CRITIC, "it is a file"),
    Elsewhere("docs/rules.md", "from math_verify import", None, "nothing else needs the package"),
    *(
        Elsewhere("docs/adding.md", beginning, test, "it is put into its package, as a contributor would")
        for *beginnings, test in ADDED
        for beginning in beginnings
    ),
)

SHOWN = [one for page in PAGES for one in shown_in((ROOT / page).read_text(), page)]
ON_A_CLUSTER = [one.text for one in SHOWN if one.elsewhere and (one.elsewhere.by or "").startswith(SLURM)]


def _understand_submit(words: list[str]) -> None:
    options, flags = own_options(words, "submit", submit.USAGE)
    submit._num_jobs(options)
    submit._check_can_submit(parse(flags))


PARSERS = {
    "run": parse,
    "validate": lambda words: parse([word for word in words if word[2:] not in validate.OPTIONS], "validate"),
    "submit": _understand_submit,
    "loop": loop.read_loop,
    "pairs": lambda words: pairs._parser().parse_args(words),
    "export": lambda words: export.chosen(export._arguments(words).format),
    "bench": lambda words: bench._parser().parse_args(words),
}
STARTS = re.compile(r"(?:data-engine|torchrun .*-m data_engine) (?P<command>\w+)|(?:sbatch .*)?launch/\S+")


def is_of_the_engine(line: str) -> bool:
    return STARTS.match(line) is not None


def understand(line: str) -> None:
    """The command's own parser reads the line; called in a folder without runs. Raises UserError where it does not."""
    found = STARTS.match(line)
    command = found["command"] or ("loop" if "loop.sbatch" in line else "run")
    words = shlex.split(line[found.end() :].partition(" | ")[0])
    assert command in COMMANDS, line
    if command in PARSERS:
        PARSERS[command](words)
    else:
        # These read their arguments in `main`, and look for the folder after.
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            assert main([command, *words]) == 2
        assert told.getvalue() == f'data-engine: error: no folder "{words[0]}"\n', line
