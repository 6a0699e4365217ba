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
from data_engine.rounds import training
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


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("sh x {dataset} {output} > log", ">"),
        ("sh x {dataset} {output} >>log 2>&1", ">>log"),
        ("sh x {dataset} {output} 2>&1", "2>&1"),
        ("sh x {dataset} {output} | tee log", "|"),
        ("sh x {dataset} {output} &", "&"),
        ("cd there && sh x {dataset} {output}", "&&"),
        ("source env.sh; sh x {dataset} {output}", "env.sh;"),
        ("sh $HOME/x {dataset} {output}", "$HOME/x"),
        ("sh ${HOME}/x {dataset} {output}", "${HOME}/x"),
    ],
)
def test_what_is_for_a_shell_is_refused_before_the_first_round(command, word):
    """The trainer would get it as an argument, hours later."""
    with pytest.raises(UserError) as refused:
        check_command(command, has_exports=False)
    assert str(refused.value).startswith(f'train has "{word}", which is for a shell, and none starts it: write the ')


@pytest.mark.parametrize(
    "command",
    [
        "sh -c 'cd there && sh x $0 $1 > log' {dataset} {output}",
        "sh -c $HOME/x {dataset} {output}",
        "sh x {dataset} {output} --note 'a > b; c' --token '<image>'",
        "sh x {dataset} {output} --rate 1e-6 --name a->b",
    ],
)
def test_what_a_shell_that_is_started_reads_is_not_refused(command):
    check_command(command, has_exports=False)


@pytest.mark.parametrize(
    "begins",
    ["sh", "bash -e", "python", "python3 -u", "accelerate launch --num_processes 2", "torchrun --nproc_per_node 2"],
)
def test_a_script_that_is_not_there_is_refused_before_the_first_round(tmp_path, monkeypatch, begins):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "_why_no_program", lambda word: None)
    (tmp_path / "train.py").touch()
    require_program(f"{begins} train.py {{dataset}} {{output}}")
    with pytest.raises(UserError) as refused:
        require_program(f"{begins} trian.py {{dataset}} {{output}} --other gone.py")
    assert str(refused.value) == 'train names "trian.py", which is not there; did you mean "train.py"?'


@pytest.mark.parametrize(
    "command",
    [
        # What these read lies elsewhere, or is said otherwise.
        "env -C there sh train.sh {dataset} {output}",
        "sh -c 'cd there; sh train.sh'",
        f"{sys.executable} -m trainer train.py {{dataset}} {{output}}",
        "sh {work_dir}/../../train.sh {dataset} {output}",
    ],
)
def test_a_script_that_may_lie_elsewhere_is_not_looked_for(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    require_program(command)


def test_a_home_in_a_command_is_found(tmp_path, monkeypatch):
    """Quotes keep the shell from it, and no shell starts the trainer."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "train.sh").touch()
    require_program("sh ~/train.sh {dataset} {output}")
    one = Round(tmp_path / "loop", 1)
    words = command_of("sh ~/train.sh {output}", one, RunConfig.draft({}).config)
    assert words == ["sh", str(tmp_path / "train.sh"), str(one.model)]


def test_a_command_that_begins_with_no_program_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.sh").touch()
    require_program("sh train.sh {dataset} {output}")
    require_program("{work_dir}/../../train {dataset} {output}")
    with pytest.raises(UserError, match='train begins with "no-such-program", which is no program on this machine'):
        require_program("no-such-program {dataset} {output}")
    with pytest.raises(
        UserError, match='train begins with "GPUS=0", which is for a shell, and none starts it: begin w'
    ):
        require_program("GPUS=0 sh train.sh {dataset} {output}")


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
