"""The card of an export: what it tells, that no value breaks it, and that no private folder name is in it."""

import dataclasses
import io
import re
import shlex
import subprocess
from collections import Counter

import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard
from PIL import Image
from stage2_world import make_world

from data_engine import exports
from data_engine.commands.arguments import parse
from data_engine.exports.base import Written
from data_engine.exports.card import PICTURE, Card, text
from data_engine.preferences.funnel import Funnel
from data_engine.reporting import plots
from data_engine.reporting.picture import picture
from data_engine.rewards.sentences import SENTENCES
from data_engine.stages import SOURCES

pytestmark = pytest.mark.usefixtures("drawn_plots")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CACHE = f"/home/jane/.cache/huggingface/hub/models--openbmb--RLAIF-V-7B/snapshots/{COMMIT}"
HOSTILE = "a: [b | `c` <img src=x onerror=alert(1)>\n---\n# d\r\n| e | \x00\x1b[31m $f$ ![g](h) ```"


def run_file(**config):
    """run.json of a run whose instruct model is of the hub, and whose reward model is a local folder."""
    given = {
        "instruct_model_path": "openbmb/RLAIF-V-7B", "reward_model_path": "/home/jane/secret/project-x/tuned",
        "dataset_path": "../secret/questions.parquet", "work_dir": "/data/jane/work-7",
        "instruct_model_revision": "main", "reward_model_revision": None, "image_root": "~jane/pictures",
        "chat_template": None, "chat_template_kwargs": None, "system": None, "limit": None,
        "continue_from_stage": 1, "shard_index": 2, "num_shards": 4,
        "sample_k": 10, "rank": 3, "distance": 25, "beta": 0.1, "temperature": 0.7, "top_k": 50, "seed": 0,
        "export": "trl,sft", "threads": 4, "same_pixels": False, "max_megapixels": 64.0,
    }  # fmt: skip
    return {
        "config": given | config,
        "places": {"dataset_path": "/home/jane/secret/questions.parquet", "image_root": "/home/jane/pictures"},
        "bound": {
            "dataset": "d" * 64, "instruct_model": "1" * 64, "reward_model": "2" * 64, "sample_k": 6, "seed": 0,
            "temperature": 0.0, "top_k": 50, "exif": "apply", "system": config.get("system"), "dtype": "float32",
            "limit": None, "same_pixels": False, "chat_template": "c" * 64,
        },
        "models": {
            "instruct": {"folders": [CACHE, "/home/jane/openai/clip"], "family": "llava"},
            "reward": {"folders": ["/home/jane/secret/project-x/tuned"], "family": "llava"},
        },
        "versions": {"data_engine": "0.1.0", "torch": "2.13.0"},
    }  # fmt: skip


def card(**changes):
    funnel = Funnel(
        questions=1200, quarantined=7, answers=12000, not_ranked=Counter(duplicate=31), ranked=11969,
        candidate_pairs=5000, dropped=Counter(per_idx=2000), written=3000,
    )  # fmt: skip
    made = Card(
        "trl", "Pairs for TRL's DPO trainer.", [("chosen", "the better answer")], "Load it so.", 2990,
        [("pairs with a control token in a text were left out", 10), ("never happened", 0)],
        run_file(), {"rank": 2, "distance": 25, "beta": 0.2, "seed": 0}, funnel, "cc-by-4.0", True,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def front_matter(written):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", written, re.DOTALL)[1])


def rows_of(written, section):
    """The cells of the table in a section, without its heading; by a rule of this test: split at bare pipes."""
    body = written.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in body.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def command(written):
    return re.search(r"^(`{3,})sh\n(.*?)\n\1$", written, re.DOTALL | re.MULTILINE)[2]


def test_the_front_matter_is_what_the_hub_reads():
    expected = {
        "license": "cc-by-4.0",
        "pretty_name": "Preferences for questions.parquet, trl",
        "task_categories": ["image-text-to-text"],
        "tags": ["preference", "dpo", "data-engine"],
        "size_categories": ["1K<n<10K"],
    }
    assert front_matter(text(card())) == expected
    assert DatasetCard(text(card())).data.to_dict() == expected


def test_a_local_export_has_no_licence_and_a_card_none_of_what_makes_a_cache_stale():
    found = front_matter(text(card(licence=None)))
    assert not {"license", "language", "configs", "dataset_info"} & set(found)


@pytest.mark.parametrize(("rows", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (100_000, "100K<n<1M")])
def test_the_size_is_one_of_the_hubs_classes(rows, size):
    assert front_matter(text(card(rows=rows)))["size_categories"] == [size]


@pytest.mark.parametrize(
    ("name", "tag"),
    [("rlaif-v", "dpo"), ("ms-swift-kto", "kto"), ("trl-kto", "kto"), ("sft", "sft"), ("ms-swift-sft", "sft"),
     ("ms-swift-rm", "reward-modeling"), ("internvl-mpo", "mpo"), ("llava-next", "dpo"), ("scored", "reward-modeling"),
     ("rlaif-v-logps", "dpo")],
)  # fmt: skip
def test_a_tag_says_how_one_trains_on_it(name, tag):
    assert front_matter(text(card(format=name)))["tags"][1] == tag


def test_models_are_named_with_the_commit_that_was_used_and_the_hash_of_their_content():
    assert rows_of(text(card()), "Models") == [
        ["instruct", "[openbmb/RLAIF-V-7B](https://huggingface.co/openbmb/RLAIF-V-7B)", f"main ({COMMIT})", "llava",
         "1" * 64],
        ["reward", "tuned", "local folder", "llava", "2" * 64],
    ]  # fmt: skip


def test_a_model_that_was_asked_for_by_its_commit_is_named_by_it_once():
    rows = rows_of(text(card(run_file=run_file(instruct_model_revision=COMMIT))), "Models")
    assert rows[0][2] == COMMIT


def test_settings_are_those_of_the_answers_and_of_the_last_pairing():
    written = text(card())
    answers = dict(rows_of(written, "Answers"))
    # 6, not the 10 of the first start; greedy is told, though 0 is falsy; what is off is not.
    assert answers["sample_k"] == "6"
    assert (answers["temperature"], answers["seed"], answers["exif"]) == ("0.0", "0", "apply")
    assert answers["chat_template"] == f"sha256 {'c' * 64}"
    assert not {"same_pixels", "limit", "system", "answers"} & set(answers)
    pairing = dict(rows_of(written, "Rewards and pairs"))
    assert pairing == {"strategy": "cross", "rank": "2", "distance": "25", "beta": "0.2", "seed": "0"}
    assert "beta = 0.2 times the sum" in written


def test_each_source_of_reward_is_told_with_its_formula_and_its_models():
    made = run_file(rewards="implicit, contrast,yesno,scalar", yesno_model_path="/home/jane/secret/judge_[x]",
                    scalar_model_path="Skywork/Skywork-VL-Reward-7B")  # fmt: skip
    made["bound"]["yesno_template"] = "a" * 64
    made["models"]["scalar"] = {"folders": [CACHE.replace("openbmb--RLAIF", "Skywork--Skywork-VL")], "family": "auto"}
    written = text(card(run_file=made))
    assert "Sources of reward: implicit, contrast, yesno, scalar." in written
    for told in (
        "beta = 0.2 times the sum (or the mean) over its tokens of log p under the reward model tuned minus log p "
        "under the instruct model openbmb/RLAIF-V-7B.",
        "log p with the image minus log p without it, both under the instruct model openbmb/RLAIF-V-7B.",
        f"of the judge judge\\_\\[x\\], which is asked about the answer; sha256 of what it is asked: {'a' * 64}.",
        "the head of the reward model Skywork/Skywork-VL-V-7B gives of question and answer",
    ):
        assert told in written
    assert "contrast" not in text(card())
    assert SENTENCES.keys() >= SOURCES.keys(), "say in a sentence what each source of reward is"


def test_answers_of_another_engine_are_named_with_what_is_not_promised():
    made = run_file(sampler="vllm")
    made["sampler"] = {"name": "vllm", "version": "0.32.0", "same_bytes": False, "told": "other bytes | each time"}
    written = text(card(run_file=made))
    assert "The answers were drawn by vllm 0.32.0: other bytes \\| each time." in written
    assert "were drawn by" not in text(card())


def test_the_funnel_and_what_was_changed_are_told_with_their_counts():
    written = text(card())
    assert rows_of(written, "Funnel") == [
        ["questions", "1,200"], ["quarantined", "7"], ["answers", "12,000"],
        ["not ranked: an answer with a lower sample_index has the same text", "31"], ["ranked answers", "11,969"],
        ["candidate pairs", "5,000"], ["dropped by per_idx", "2,000"], ["pairs in the default dataset", "3,000"],
    ]  # fmt: skip
    changed = rows_of(written, "Changed or left out by this export")
    assert changed == [["pairs with a control token in a text were left out", "10"]]
    assert "2,990 rows" in written
    assert "left out by this export\n\nNothing.\n" in text(card(changed=[]))


def test_the_command_has_the_flags_that_differ_and_can_be_read_back():
    words = shlex.split(command(text(card())).replace("\\\n", " "))
    assert words[:2] == ["data-engine", "run"]
    config = parse(words[2:])
    assert (config.rank, config.sample_k, config.beta, config.temperature) == (2, 6, 0.2, 0.0)
    assert (config.instruct_model_path, config.reward_model_path) == ("openbmb/RLAIF-V-7B", "tuned")
    # A start's own part of the work, and defaults, are not told.
    others = {"--shard_index", "--num_shards", "--continue_from_stage", "--threads", "--export"}
    assert not {*others, "--distance", "--top_k"} & set(words)


def test_the_command_has_no_flag_of_an_earlier_version():
    words = command(text(card(run_file=run_file(lookahead=True))))
    assert "--beta" in words
    assert "--lookahead" not in words


def test_the_command_has_no_flag_of_an_earlier_pairing():
    earlier = run_file(strategy="best_worst", rank_by="implicit.avg", max_pairs=9, near_duplicates=0.5)
    config = parse(shlex.split(command(text(card(run_file=earlier))).replace("\\\n", " "))[2:])
    assert (config.strategy, config.rank_by, config.max_pairs, config.near_duplicates) == ("cross", None, 3, None)
    later = card(run_file=earlier, settings={"rank": 2, "beta": 0.2, "strategy": "aligned"})
    config = parse(shlex.split(command(text(later)).replace("\\\n", " "))[2:])
    assert (config.strategy, config.rank_by) == ("aligned", None)


def test_what_a_run_does_not_go_by_is_not_told():
    """A rule has no beta and no reward model, and the strategy best_worst no rank."""
    made = run_file(rewards="rule", rule="contains", reward_model_name="RLAIF-V-7B")
    del made["models"]["reward"]
    settings = {"rank": 2, "distance": 25, "beta": 0.2, "seed": 0, "strategy": "best_worst", "rank_by": "rule"}
    written = text(card(run_file=made, settings=settings))
    assert [name for name, _ in rows_of(written, "Rewards and pairs")] == ["strategy", "distance", "seed", "rank_by"]
    words = shlex.split(command(written).replace("\\\n", " "))
    assert not {"--beta", "--rank", "--reward_model_path", "--reward_model_name"} & {*words}
    assert {"--rule", "--instruct_model_path", "--rank_by"} <= {*words}


def test_of_given_answers_no_setting_of_sampling_is_told():
    given = run_file(answers="/home/jane/secret/answers.parquet")
    given["bound"] |= {"answers": "a" * 64, "answers_vocabulary": "v" * 64}
    found = [name for name, _ in rows_of(text(card(run_file=given)), "Answers")]
    assert sorted(found) == ["answers", "chat_template", "dtype", "exif"]


def test_a_copy_of_a_run_elsewhere_has_the_same_card():
    elsewhere = run_file(work_dir="/other/place", shard_index=0)
    elsewhere["places"] = {"dataset_path": "/elsewhere/questions.parquet"}
    assert text(card(run_file=elsewhere)) == text(card())


def test_no_folder_of_this_machine_is_told():
    kwargs = '{"tools": "/home/jane/secret/tools.json", "b": "file:///data/jane/x.txt", "c": "../secret/y"}'
    secrets = {"chat_template": "/home/jane/secret/t.jinja", "chat_template_kwargs": kwargs,
               "system": "Yes/no: see ~/secret/notes.txt"}  # fmt: skip
    cached = card(run_file=run_file(**secrets, instruct_model_path=CACHE))
    for written in (text(card()), text(cached)):
        assert not re.search(r"jane|secret|project-x|/home|/data", written)
    assert {"tools.json", "x.txt", "t.jinja", "notes.txt", "Yes/no"} <= set(re.findall(r"[\w./]+", text(cached)))
    assert "[openbmb/RLAIF-V-7B]" in text(cached)


@pytest.mark.parametrize("name", ["org/data", "plain"])
def test_a_dataset_of_the_hub_is_named_whole(name):
    found = run_file(dataset_path=name) | {"places": {"dataset_path": name}}
    assert front_matter(text(card(run_file=found)))["pretty_name"] == f"Preferences for {name}, trl"


def test_a_relative_folder_that_looks_like_a_hub_id_is_not_told():
    found = run_file(dataset_path="secret/data") | {"places": {"dataset_path": "/srv/secret/data"}}
    assert "secret" not in text(card(run_file=found))


def test_hostile_values_break_neither_the_front_matter_nor_a_table():
    found = run_file(system=HOSTILE, dataset_path=HOSTILE, dataset_split=HOSTILE) | {"places": {}}
    found["models"]["reward"]["family"] = HOSTILE
    made = card(run_file=found, sentence=HOSTILE, columns=[(HOSTILE, HOSTILE)], changed=[(HOSTILE, 3)])
    written = text(made)
    values = front_matter(written)
    assert list(values) == ["license", "pretty_name", "task_categories", "tags", "size_categories"]
    assert values == DatasetCard(written).data.to_dict()
    assert "\n" not in values["pretty_name"]
    widths = {"Models": 5, "Answers": 2, "Columns": 2, "Changed or left out by this export": 2}
    for section, width in widths.items():
        assert {len(row) for row in rows_of(written, section)} == {width}
    outside = written.split("\n---\n", 1)[1].replace(command(written), "")
    assert not re.search(r"<img|\x00|\x1b|\n# d|!\[g", outside)
    assert not re.search(r"[\x00\x1b\r]", written)


def test_a_shell_reads_hostile_values_of_the_command_as_they_were():
    value = HOSTILE.replace("\x00", "\\ 'quoted' \u2028\x85")
    written = command(text(card(run_file=run_file(system=value))))
    shell = f"data-engine() {{ printf '%s\\0' \"$@\"; }}\n{written}"
    words = subprocess.run(["bash", "-c", shell], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}).stdout
    words = words.decode().split("\0")
    assert words[words.index("--system") + 1] == value


def test_the_same_facts_give_the_same_bytes_and_no_date_is_told():
    assert text(card()) == text(card())
    assert not re.search(r"20\d\d-\d\d", text(card()))


def test_one_row_is_told_as_one():
    assert "DPO trainer. 1 row.\n" in text(card(rows=1))
    assert exports.told("trl", Written(1)) == "export trl: 1 row"


def test_the_picture_is_named_where_there_is_one():
    assert f"]({PICTURE})" in text(card())
    assert PICTURE not in text(card(has_picture=False))


def test_the_picture_has_the_same_bytes_each_time_and_suits_a_page_of_800_pixels(tmp_path):
    world = make_world(tmp_path / "world", num_questions=20)
    world.publish(tmp_path / "work")
    funnel = world.pair(tmp_path / "work")
    data = picture(tmp_path / "work/pairs/pairs.parquet", funnel)
    assert data == picture(tmp_path / "work/pairs/pairs.parquet", funnel)
    shown = Image.open(io.BytesIO(data))
    assert shown.width == 1600
    assert not set(shown.info) & {"Software", "Creation Time"}
    # Opaque and white: it is read on a dark page, too.
    assert shown.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    assert shown.convert("RGBA").getextrema()[3] == (255, 255)


def test_rewards_of_any_size_have_a_picture(drawn_plots):
    """A rule may reward by any finite number; the difference of two of these is none."""
    columns = {"chosen_words": np.array([3, 4]), "rejected_words": np.array([2, 4])}
    for chosen, rejected in ((1e308, -1e308), (1e99, -1e99), (1e20, 1e20), (1e-300, 0.0)):
        numbers = {"chosen_rule": np.array([chosen, 1.0]), "rejected_rule": np.array([rejected, 0.0])}
        assert plots.summary(columns | numbers, "rule", [("questions", 2)])
    alone = {"chosen_rule": np.full(2, 1e308), "rejected_rule": np.full(2, -1e308)}
    assert plots.summary(columns | alone, "rule", [("questions", 2)])


def test_a_run_without_a_kept_pair_has_no_picture(tmp_path):
    world = make_world(tmp_path / "world", num_questions=4)
    world.publish(tmp_path / "work")
    # Word counts differ by less than 1 nowhere but in equal lengths: answers of one length each leave none.
    for row in world.rows:
        row["answer"] = "same"
    for stage in ("sampled_answer", "instruct_logps", "reward_logps"):
        for file in (tmp_path / "work" / stage).iterdir():
            file.unlink()
    world.publish(tmp_path / "work")
    funnel = world.pair(tmp_path / "work")
    assert funnel.written == 0
    assert picture(tmp_path / "work/pairs/pairs.parquet", funnel) is None
