"""--reference_model_path: the implicit reward of a model that was tuned from another one than that which answers."""

import shutil

import pyarrow.parquet as pq
import pytest
from bound_run import GOLDENS, Run, change_a_weight
from run_files import read
from safetensors.torch import load_file, save_file

from data_engine import load_model, score_answers
from data_engine.commands.main import main
from data_engine.demo.areas import rewards_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_thread):
    """A run of two models, and a third one beside them."""
    run = Run(tmp_path_factory.mktemp("reference") / "run").make()
    other = shutil.copytree(run.folder / "instruct", run.folder / "other")
    for file in other.glob("*.safetensors"):
        save_file({name: value * 0.9 for name, value in load_file(file).items()}, file, {"format": "pt"})
    assert run.start() == 0
    return run


def other(run: Run) -> dict[str, str]:
    return {"reference_model_path": str(run.folder / "other")}


def sums(run: Run, stage: str) -> dict[tuple, float]:
    return {(row["idx"], row["sample_index"]): sum(row["token_logps"]) for row in read(run.work / stage)}


def test_with_the_instruct_model_as_reference_the_dataset_is_the_same(run, finished):
    shutil.rmtree(run.work)
    copy = shutil.copytree(run.folder / "instruct", run.folder / "copy")
    assert run.start(reference_model_path=str(copy)) == 0
    [ours], [theirs] = (list((one.work / "dataset").iterdir()) for one in (run, finished))
    assert ours.read_bytes() == theirs.read_bytes()
    # That model is not run for its log-probs.
    assert not (run.work / "instruct_logps").exists()


def test_rewards_are_against_the_reference_and_a_start_that_names_one_computes_its_log_probs_alone(run):
    before = read(run.work / "pairs")
    assert run.computed_again(**other(run)) == set()
    model = load_model(None, str(run.folder / "other"), device="cpu", dtype="float32")
    reference, reward = sums(run, "reference_logps"), sums(run, "reward_logps")
    for row in read(run.work / "sampled_answer"):
        picture = (run.folder / f"pictures/{row['idx'][1:]}.png").read_bytes()
        [scored] = score_answers(model, picture, "What is it?", [row["token_ids"]])
        assert reference[row["idx"], row["sample_index"]] == pytest.approx(float(scored.sum()), abs=1e-4)
    after = read(run.work / "pairs")
    for row in after:
        for side in ("chosen", "rejected"):
            key = row["idx"], row[f"{side}_index"]
            assert row[f"{side}_sum"] == pytest.approx(0.1 * (reward[key] - reference[key]), abs=1e-6)
    assert after != before
    # So does the demo, which reads the units itself.
    for key, columns in rewards_of(run.work).items():
        assert columns["implicit.sum"] == pytest.approx(0.1 * (reward[key] - reference[key]), abs=1e-6)


def test_a_model_may_judge_itself_against_what_it_was_tuned_from(run, capfd):
    shutil.rmtree(run.work)
    same = {"reward_model_path": str(run.folder / "instruct")}
    assert run.start(**same, **other(run)) == 0
    told = "model itself: every reward of implicit is 0"
    assert told not in capfd.readouterr().err
    assert max(abs(row["chosen_sum"] - row["rejected_sum"]) for row in read(run.work / "pairs")) > 1e-3
    shutil.rmtree(run.work)
    run.start(**same, reference_model_path=str(shutil.copytree(run.folder / "instruct", run.folder / "copy")))
    assert f"the reference {told}" in capfd.readouterr().err


def test_another_reference_is_another_run(run):
    assert run.start(**other(run)) == 0
    change_a_weight(run.folder / "other")
    assert "reference_model was " in run.refusal(**other(run))
    # The run without it stays what it was.
    assert run.computed_again() == set()


def test_a_pair_of_models_with_another_tokenizer_rewards_texts(run, capfd, goldens):
    """LLaVA-1.5 answers, and what OmniLMM learned by DPO rewards: both read the answers as text."""
    shutil.rmtree(run.work)
    models = {role: str(goldens / "omnilmm" / folder) for role, folder in
              (("reference", "instruct"), ("reward", "reward"))}  # fmt: skip
    assert run.start(**{f"{role}_model_path": folder for role, folder in models.items()}) == 0
    told = capfd.readouterr().err
    assert "instruct and reference and reward model have different tokenizers: answers go over as text" in told
    assert "does not look tuned" not in told
    scored = {}
    for role, folder in models.items():
        model = load_model(None, folder, device="cpu", dtype="float32")
        for row in read(run.work / "sampled_answer"):
            picture = (run.folder / f"pictures/{row['idx'][1:]}.png").read_bytes()
            [found] = score_answers(model, picture, "What is it?", [row["answer"]])
            # Of an answer that was cut off, the end token is not its own.
            own = found[:-1] if row["finish_reason"] == "length" else found
            scored[role, row["idx"], row["sample_index"]] = float(own.double().sum())
    pairs = read(run.work / "pairs")
    assert pairs
    for row in pairs:
        key = row["idx"], row["chosen_index"]
        assert row["chosen_sum"] == pytest.approx(0.1 * (scored["reward", *key] - scored["reference", *key]), abs=1e-4)


def test_validate_tells_of_it(run, capsys):
    def told(*more: str) -> str:
        paths = {f"{role}_model_path": run.folder / role for role in ("instruct", "reward")}
        paths |= {"dataset_path": run.folder / "questions.parquet", "work_dir": run.folder / "new"}
        paths |= {"image_root": run.folder / "pictures", "device": "cpu"}
        code = main(["validate", *(f"--{name}={value}" for name, value in paths.items()), *more])
        shown = capsys.readouterr()
        return f"{code}\n{shown.out}{shown.err}"

    named = f"--reference_model_path={run.folder / 'other'}"
    whole = told(named)
    assert whole.startswith("0\n")
    assert "reference model: llava (LLaVA-1.5" in whole
    assert "reference_logps" in whole
    assert "instruct_logps" not in whole
    assert "reference_model_path has no effect" in told(named, "--rewards=contrast")
    assert f'error: --reference_model_path "{run.folder / "gone"}"' in told(
        f"--reference_model_path={run.folder / 'gone'}"
    )
    reward, far = (
        f"--reference_model_path={folder}"
        for folder in (run.folder / "reward", GOLDENS.with_name("omnilmm") / "instruct")
    )
    assert "the reward model is the reference model itself" in told(reward)
    assert "instruct and reference model have different tokenizers" in told(far)
    refused = told(named, "--export=rlaif-v-logps")
    assert "add contrast (or implicit, without --reference_model_path)" in refused
    assert told(named, "--export=rlaif-v-logps", "--rewards=implicit,contrast").startswith("0\n")


def test_pages_and_cards_name_it(run):
    # The heat of tokens is of the reference, too.
    shutil.rmtree(run.work / "instruct_logps")
    assert run.start(**other(run), export="trl") == 0
    page = (run.work / "report/index.html").read_text()
    assert "log p<sub>reference</sub>" in page
    assert "<sub>instruct</sub>" not in page
    assert "Tokens have no heat" not in page
    card = (run.work / "exports/trl/README.md").read_text()
    assert "minus log p under the reference model other." in card


def sum_of_first(run: Run, name: str) -> tuple[tuple, float]:
    row = pq.read_table(run.work / f"pairs/{name}.parquet").to_pylist()[0]
    return (row["idx"], row["chosen_index"]), row["chosen_sum"]


def reward_against(run: Run, role: str, key: tuple) -> float:
    return 0.1 * (sums(run, "reward_logps")[key] - sums(run, f"{role}_logps")[key])


def test_a_start_without_the_reference_is_one_without_it_for_other_commands_too(run, capsys):
    """What was computed against it stays on the disk, and so does a pairing by it, which goes on to say so."""
    assert run.start(**other(run)) == 0
    assert main(["pairs", str(run.work), "--name=before"]) == 0
    assert run.start() == 0
    assert main(["pairs", str(run.work), "--name=after"]) == 0
    for name, role in (("before", "reference"), ("pairs", "instruct"), ("after", "instruct")):
        key, found = sum_of_first(run, name)
        assert found == pytest.approx(reward_against(run, role, key), abs=1e-6), name
    capsys.readouterr()
    assert main(["status", str(run.work)]) == 0
    assert "reference_logps" not in capsys.readouterr().out
    for name, role in (("before", "reference"), ("after", "instruct")):
        assert main(["report", str(run.work), f"--name={name}"]) == 0
        assert f"log p<sub>{role}</sub>" in (run.work / f"report/{name}/index.html").read_text()
        output = run.folder / f"export-{name}"
        assert main(["export", str(run.work), f"--name={name}", "--format=trl", f"--output={output}"]) == 0
        folder = "other" if role == "reference" else "instruct"
        assert f"minus log p under the {role} model {folder}." in next(output.rglob("README.md")).read_text()
    assert "log p<sub>instruct</sub>" in (run.work / "report/index.html").read_text()


def test_pairs_that_are_there_keep_their_models_until_a_start_pairs_anew(run):
    """A start with a reference of another tokenizer ends before it pairs."""
    changes = {"reference_model_path": str(GOLDENS.with_name("omnilmm") / "instruct")}
    assert run.start(**changes, stop_after_stage=1) == 0
    assert main(["pairs", str(run.work), "--name=a"]) == 0
    key, found = sum_of_first(run, "a")
    assert found == pytest.approx(reward_against(run, "instruct", key), abs=1e-6)
    # With texts of two tokenizers there is none.
    assert main(["pairs", str(run.work), "--name=b", "--rank_by=implicit.min"]) == 0


def test_a_reward_model_of_another_tokenizer_that_a_later_start_adds_gives_no_reward_by_token(run, capsys):
    """Ahead of any pairing that reads its log-probs."""
    shutil.rmtree(run.work)
    assert run.start(rewards="contrast") == 0
    added = {"rewards": "contrast,implicit", "reward_model_path": str(GOLDENS.with_name("omnilmm") / "reward")}
    assert run.start(**added, stop_after_stage=1) == 0
    assert main(["pairs", str(run.work), "--name=sum", "--rank_by=implicit.sum"]) == 0
    capsys.readouterr()
    # The two models' tokens do not stand for each other.
    assert main(["pairs", str(run.work), "--name=min", "--rank_by=implicit.min"]) == 4
    assert "implicit.min: no answer has a number" in capsys.readouterr().out
