"""The command that trains a round: what it may be, what it becomes, and what it must leave behind."""

import shutil
import subprocess
import sys
from pathlib import Path

import adapters
import pytest
from safetensors.torch import load_file

from data_engine.config import RunConfig
from data_engine.errors import TrainerError, UserError
from data_engine.processes.children import Children
from data_engine.rounds.places import Round
from data_engine.rounds.training import check_command, command_of, require_model, require_program, train

INSTRUCT = Path(__file__).parents[1] / "goldens/llava/instruct"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("", "train is empty"),
        ("sh 'x {dataset} {output}", "train cannot be cut into words: No closing quotation"),
        ("sh x {dataset}", "train has no {output}"),
        ("sh x {dataset} output", "train has no {output}"),
        ("sh x {output} {model}", "train has neither {dataset} nor {exports}"),
        ("sh x {output} {exports}", "nothing is exported"),
        ("sh x {outputs} {dataset}", "train has {outputs}, which stands for nothing; known: {model}, {dataset}, "
         "{exports}, {output}, {round}, {work_dir}; did you mean output?"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_train_is_refused(command, told):
    with pytest.raises(UserError) as refused:
        check_command(command, has_exports=False)
    assert told in str(refused.value)


def test_a_command_that_begins_with_no_program_is_refused():
    require_program("sh train.sh {dataset} {output}")
    require_program("{work_dir}/../../train {dataset} {output}")
    with pytest.raises(UserError, match='train begins with "no-such-program", which is no program on this machine'):
        require_program("no-such-program {dataset} {output}")


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [
        ("echo a\n", 0o755, "a script without a first line such as #!/bin/sh: begin with what runs it, as in"),
        ("", 0o755, "a script without a first line such as #!/bin/sh"),
        ("#!/bin/sh\r\necho a\r\n", 0o755, "a script with the line ends of Windows"),
        ("#! /no/such/sh -e\n", 0o755, 'a script whose first line names "/no/such/sh", which is no program'),
        ("#!/bin/sh\necho a\n", 0o644, "which may not be executed: begin with what runs it, as in --train 'sh "),
        ("#!/bin/sh\necho a\n", 0o755, None),
        ("#! /usr/bin/env sh\necho a\n", 0o755, None),
    ],
)
def test_a_script_that_only_a_shell_can_start_is_refused_before_the_first_round(tmp_path, content, mode, told):
    script = tmp_path / "train.sh"
    script.write_text(content, newline="")
    script.chmod(mode)
    command = f"{script} {{dataset}} {{output}}"
    if told is None:
        require_program(command)
        assert subprocess.run([script], check=False).returncode == 0
        return
    with pytest.raises(UserError) as refused:
        require_program(command)
    assert str(refused.value).startswith(f'train begins with "{script}", {told}')
    with pytest.raises(OSError, match=r"Exec format error|No such file|Permission denied"):
        subprocess.run([script], check=False)


@pytest.mark.parametrize(
    ("name", "mode", "told"),
    [
        # sh would take its imports for commands.
        ("train.py", 0o644, "which may not be executed: begin with what runs it, as in --train 'python train.py ...'"),
        ("train.sh", 0o644, "which may not be executed: begin with what runs it, as in --train 'sh train.sh ...'"),
        ("train.sh", 0o755, "a file of this folder, where no program is looked for: begin with ./train.sh"),
    ],
)
def test_a_script_of_this_folder_is_told_with_what_starts_it(tmp_path, monkeypatch, name, mode, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / name).chmod(mode)
    with pytest.raises(UserError) as refused:
        require_program(f"{name} {{dataset}} {{output}}")
    assert str(refused.value) == f'train begins with "{name}", {told}'
    with pytest.raises(OSError, match=r"No such file|Permission denied"):
        subprocess.run([name], check=False)


def test_places_are_put_into_the_words_and_nothing_is_cut_there(tmp_path):
    one = Round(tmp_path / "a loop", 2)
    config = RunConfig(
        instruct_model_path="models/my sft", dataset_path="q", work_dir="w", rewards="rule", rule="final_answer"
    )
    command = """sh 'my train.sh' --model={model} '{"data": "{dataset}", "n": {}}' {exports}/trl {output} """
    command += "{round} {work_dir}"
    check_command(command, has_exports=True)
    folder = str(tmp_path / "a loop/round-2")
    assert command_of(command, one, config) == [
        "sh", "my train.sh", "--model=models/my sft", f'{{"data": "{folder}/run/dataset", "n": {{}}}}',
        f"{folder}/run/exports/trl", f"{folder}/model", "2", f"{folder}/run",
    ]  # fmt: skip


@pytest.fixture
def one(tmp_path) -> Round:
    found = Round(tmp_path, 1)
    found.folder.mkdir()
    return found


@pytest.mark.parametrize(
    ("ends", "told"), [("sys.exit(3)", "exit code 3"), ("os.kill(os.getpid(), 9)", "ended by SIGKILL")]
)
def test_a_trainer_that_fails_is_told_with_its_last_words(one, ends, told):
    say = f"import os, sys; print('a' + chr(13) + 'bar 100 %'); print('out of memory', flush=True); {ends}"
    children = Children(one.loop)
    with children.alone(), pytest.raises(TrainerError) as failed:
        train(one, [sys.executable, "-c", say], children)
    message = str(failed.value)
    assert message.startswith(f"the trainer of round 1 failed ({told}): ")
    assert f'Its output is in "{one.log}", which ends with:\n  bar 100 %\n  out of memory\nThe pairs' in message


def test_the_last_words_are_of_this_start(one):
    one.log.write_text("no room on the device\n")
    children = Children(one.loop)
    with children.alone(), pytest.raises(TrainerError) as failed:
        train(one, ["false"], children)
    assert "It said nothing\nThe pairs" in str(failed.value)
    one.log.write_bytes(b"old\n" * 2000)
    with children.alone(), pytest.raises(TrainerError) as failed:
        train(one, ["sh", "-c", "echo new; exit 3"], children)
    assert "ends with:\n  new\nThe pairs" in str(failed.value)
    with children.alone(), pytest.raises(TrainerError) as failed:
        train(one, [sys.executable, "-c", "print('x' * 5000 + '\\nthe end'); exit(3)"], children)
    *_, long, last = str(failed.value).partition("\nThe pairs")[0].split("\n")
    assert (last, set(long.strip())) == ("  the end", {"x"})
    assert 3900 < len(long) < 4000


def following(one: Round) -> RunConfig:
    return RunConfig(
        instruct_model_path=str(one.model), dataset_path="q", work_dir="w", rewards="rule", rule="final_answer"
    )


@pytest.mark.parametrize("kind", ["nothing", "an empty folder", "no weights", "a truncated one"])
def test_a_trainer_must_leave_a_model(one, kind):
    if kind != "nothing":
        one.model.mkdir()
    if kind in ("no weights", "a truncated one"):
        shutil.copytree(INSTRUCT, one.model, dirs_exist_ok=True)
        for file in one.model.glob("*.safetensors"):
            if kind == "no weights":
                file.unlink()
            else:
                file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="the trainer of round 1 ended with 0, and left no model in"):
        require_model(one, following(one))


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_a_whole_model_is_one_and_so_is_an_adapter(one, kind):
    if kind == "whole":
        shutil.copytree(INSTRUCT, one.model)
    else:
        base = INSTRUCT.with_name("reward")
        weights = {name: value for name, value in load_file(base / "model.safetensors").items() if "q_proj.w" in name}
        adapters.write(one.model, base, adapters.stored(adapters.matrices(weights)))
    require_model(one, following(one))
