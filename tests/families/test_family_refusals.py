"""What the command line says of models and rows that cannot be used: one sentence and exit 2, never a traceback."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from runs import Pair, few, question, read, write
from safetensors.torch import load_file, save_file
from tiny_parts import picture

from data_engine import load_model
from data_engine.commands.main import main
from data_engine.models.auto.model import Auto
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.store import units

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def made(checkpoints, tmp_path_factory):
    return Pair(checkpoints("internvl"), tmp_path_factory.mktemp("internvl"))


@pytest.fixture
def pair(made, tmp_path):
    """A copy to spoil."""
    for role in ("instruct", "reward"):
        shutil.copytree(getattr(made, role), tmp_path / role)
    copied = object.__new__(Pair)
    copied.checkpoint, copied.instruct, copied.reward = made.checkpoint, tmp_path / "instruct", tmp_path / "reward"
    return copied


@pytest.fixture
def refused(pair, tmp_path, capsys):
    """What both `validate` and `run` say; the first alone may miss what only weights tell."""

    def get(*commands: str, **more: object) -> str:
        said = []
        flags = {"dataset_path": few(tmp_path, 1), "work_dir": tmp_path / "work"} | more
        for command in commands or ("validate", "run"):
            code = main(pair.words(command, **flags))
            told = capsys.readouterr()
            assert code == 2, told.out + told.err
            assert "Traceback" not in told.err
            line, *others = [line for line in told.err.splitlines() if line.startswith("data-engine: error: ")]
            # What is wrong with both models is told of each.
            of_reward = line.replace(flag(pair.instruct), flag(pair.reward, "reward"))
            assert others in ([], [of_reward])
            said.append(line.removeprefix("data-engine: error: "))
        assert len(set(said)) == 1, said
        assert not (tmp_path / "work/sampled_answer").exists()
        return said[0]

    return get


def rewrite(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change(folder: Path, change) -> None:
    """Rewrite the weights."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def flag(folder: Path, role: str = "instruct") -> str:
    return f'--{role}_model_path "{folder}": '


def test_no_chat_template(refused, pair):
    (pair.reward / "chat_template.jinja").unlink()
    assert refused() == (
        f"{flag(pair.reward, 'reward')}{pair.reward} has no chat template: pass one with --chat_template FILE"
    )


def test_a_text_only_model(refused, pair):
    rewrite(pair.instruct / "config.json", model_type="qwen2")
    assert refused().startswith(f"{flag(pair.instruct)}{pair.instruct}/config.json has model_type 'qwen2', which is a "
                                "text-only model to transformers")  # fmt: skip


def test_an_encoder_decoder(refused, pair):
    import transformers

    transformers.Florence2Config().save_pretrained(pair.instruct)
    assert "is of an encoder-decoder (florence2)" in refused()


def test_a_window_that_an_answer_has_while_it_is_decoded_alone(refused, pair):
    import transformers

    transformers.UnlimitedOcrConfig().save_pretrained(pair.instruct)
    assert "has layers of the kind reference_sliding_attention" in refused()


def test_remote_code(refused, pair):
    (pair.instruct / "own.py").write_text("raise SystemExit('this code was run')")
    rewrite(pair.instruct / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    assert "remote code is never run" in refused()


def test_a_template_without_a_place_for_images(refused, pair, tmp_path):
    file = tmp_path / "words.jinja"
    file.write_text("{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}")
    told = refused(chat_template=file)
    # Once, of both models.
    both = f"{flag(pair.instruct).removesuffix(': ')} and {flag(pair.reward, 'reward')}"
    assert told == (
        f"{both}--chat_template has no place for images: pass one that has with --chat_template FILE, or another model"
    )


WEIGHT = "language_model.layers.1.mlp.up_proj.weight"


def stored(tensors: dict) -> str:
    return next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))


def test_a_weight_that_is_missing(refused, pair):
    change(pair.instruct, lambda tensors: tensors.pop(stored(tensors)))
    assert refused() == (
        f"{flag(pair.instruct)}{pair.instruct} lacks model.{WEIGHT}: these are not the weights of this config.json"
    )


def test_a_weight_of_another_shape(refused, pair):
    def wider(tensors):
        tensors[stored(tensors)] = tensors[stored(tensors)].repeat(2, 1)

    change(pair.instruct, wider)
    assert refused() == (
        f"{flag(pair.instruct)}{pair.instruct} holds model.{WEIGHT} of shape [192, 64] where config.json makes it "
        "[96, 64]: these are not the weights of this config.json"
    )


def test_weights_in_eight_bits(refused, pair):
    def narrow(tensors):
        tensors[stored(tensors)] = tensors[stored(tensors)].to(torch.float8_e4m3fn)

    change(pair.instruct, narrow)
    assert "is stored as F8_E4M3: quantised checkpoints are not read" in refused()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint32], ids=str)
def test_quantised_weights_of_which_config_json_says_nothing_are_refused_while_loading_too(pair, dtype):
    """fp8, int8 and MLX's: from Python, a model is loaded without a check before."""
    change(pair.instruct, lambda tensors: tensors.update({stored(tensors): tensors[stored(tensors)].to(dtype)}))
    with pytest.raises(ModelError, match=r"is stored as .*: quantised checkpoints are not read"):
        load_model(None, str(pair.instruct), device="cpu", dtype="float32")


def test_a_weight_in_float64_is_read(pair):
    """It is wide, and not quantised."""
    change(pair.instruct, lambda tensors: tensors.update({stored(tensors): tensors[stored(tensors)].double()}))
    Auto.check(pair.instruct)
    assert load_model(None, str(pair.instruct), device="cpu", dtype="float32").why_plain is None


@pytest.mark.parametrize("spoil", [lambda tensors: tensors.pop(stored(tensors)),
                                   lambda tensors: tensors.update({stored(tensors): torch.zeros(3, 3)})])  # fmt: skip
def test_what_is_wrong_with_weights_is_found_while_loading_too(pair, spoil):
    """A file may be exchanged after the check."""
    change(pair.instruct, spoil)
    with pytest.raises(ModelError, match="these are not the weights of this config") as caught:
        load_model(None, str(pair.instruct), device="cpu", dtype="float32")
    assert WEIGHT in str(caught.value)


def test_weights_with_a_word_before_each_name_are_told_by_these_names(refused, pair):
    """As a model that was compiled, or wrapped for several ranks, saves its own."""

    def wrapped(tensors):
        found = {f"_orig_mod.{name}": tensors.pop(name) for name in list(tensors)}
        tensors.update(found)

    change(pair.instruct, wrapped)
    told = refused()
    assert f"{pair.instruct} lacks lm_head.weight, " in told
    assert "and holds _orig_mod." in told


def test_a_file_of_weights_that_was_cut(refused, pair):
    file = pair.instruct / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors is not a whole safetensors file" in refused()


def test_no_file_of_weights(refused, pair):
    (pair.instruct / "model.safetensors").unlink()
    assert refused().startswith(f"{flag(pair.instruct)}{pair.instruct} has no weights: expected model.safetensors")


def test_a_processor_that_does_not_belong_to_the_model(refused, pair):
    """It writes more image tokens than the tower gives features."""
    rewrite(pair.instruct / "processor_config.json", image_seq_length=16)
    told = refused("run")
    assert told.startswith(
        f"{flag(pair.instruct)}the model of {pair.instruct} cannot run a small prompt of its processor "
        "(ValueError: Image"
    )


def test_a_configuration_of_other_sizes(refused, pair):
    raw = json.loads((pair.instruct / "config.json").read_text())
    raw["text_config"] |= {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}
    (pair.instruct / "config.json").write_text(json.dumps(raw))
    told = refused()
    assert "lacks model.language_model.layers.3." in told
    assert "and 8 more" in told or "and 9 more" in told


def left_out(work_dir: Path) -> dict[str, str]:
    return {row["idx"]: row["reason"] for row in units.left_out(work_dir)}


def several_kinds_of_rows(folder: Path) -> str:
    """One that every model takes, one with two images, one with a system text, one with an earlier turn, one without
    an image.
    """
    first, second = picture(100, 130, seed=1), picture(120, 90, seed=2)
    turns = [("user", "What is it?"), ("assistant", "A dog."), ("user", "And how many?")]
    rows = [
        question("plain", "What is it?", first),
        question("two", "Which is it?", first, second),
        question("system", "What is it?", first) | {"system": "Be short."},
        question("turns", None, first) | {"messages": [{"role": role, "content": text} for role, text in turns]},
        question("none", "Tell me of ships."),
    ]
    return write(folder / "questions.parquet", [{"system": None, "messages": None} | row for row in rows])


def test_a_native_family_leaves_rows_out_that_it_has_no_place_for(tmp_path, capsys):
    models = [f"--{role}_model_path={GOLDENS / 'llava' / role}" for role in ("instruct", "reward")]
    flags = [f"--dataset_path={several_kinds_of_rows(tmp_path)}", f"--work_dir={tmp_path / 'work'}", "--sample_k=4",
             "--rank=2", "--max_new_tokens=4", "--threads=1"]  # fmt: skip
    assert main(["run", *models, *flags]) in (0, 4)
    assert "Traceback" not in capsys.readouterr().err
    told = left_out(tmp_path / "work")
    assert told.keys() == {"two", "system", "turns", "none"}
    takes = "the family llava takes one image and one question, and nothing else; the row has "
    assert {idx: reason.removeprefix(takes) for idx, reason in told.items()} == {
        "two": "2 images", "system": "a system text", "turns": "earlier turns", "none": "no image",
    }  # fmt: skip
    assert {row["idx"] for row in read(tmp_path / "work/sampled_answer")} == {"plain"}


def test_a_model_of_transformers_takes_them_all(pair, tmp_path):
    assert main(pair.words("run", dataset_path=several_kinds_of_rows(tmp_path), work_dir=tmp_path / "work")) == 0
    assert not left_out(tmp_path / "work")
    assert {row["idx"] for row in read(tmp_path / "work/sampled_answer")} == {"plain", "two", "system", "turns", "none"}


def test_a_template_for_one_image_leaves_rows_with_more_out(pair, tmp_path):
    template = tmp_path / "one.jinja"
    refuse = "{% if m.content | selectattr('type', 'equalto', 'image') | list | length > 1 %}"
    refuse += "{{ raise_exception('one image a message, please') }}{% endif %}"
    source = (pair.instruct / "chat_template.jinja").read_text()
    template.write_text(source.replace("{% for m in messages %}", "{% for m in messages %}" + refuse, 1))
    words = pair.words("run", dataset_path=several_kinds_of_rows(tmp_path), work_dir=tmp_path / "work")
    assert main([*words, "--chat_template", str(template)]) == 0
    told = left_out(tmp_path / "work")
    assert told.keys() == {"two"}
    assert "one image a message, please" in told["two"]


def test_a_chat_template_for_a_native_family(tmp_path, capsys):
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages }}")
    for command in ("validate", "run"):
        paths = [f"--{role}_model_path={GOLDENS / 'llava' / role}" for role in ("instruct", "reward")]
        flags = [f"--dataset_path={few(tmp_path, 1)}", f"--work_dir={tmp_path / 'work'}", "--sample_k=4", "--rank=2"]
        assert main([command, *paths, *flags, "--chat_template", str(template)]) == 2
        told = capsys.readouterr().err
        assert "the family llava has a prompt of its own, so chat_template and chat_template_kwargs have no" in told
        assert "Traceback" not in told


@pytest.mark.families
def test_a_model_with_layers_for_images_leaves_rows_without_one_out(checkpoints, tmp_path):
    pair = Pair(checkpoints("mllama"), tmp_path / "mllama")
    assert main(pair.words("run", dataset_path=several_kinds_of_rows(tmp_path), work_dir=tmp_path / "work")) == 0
    told = left_out(tmp_path / "work")
    assert told.keys() == {"none"}
    assert "looks at its image in layers of their own, and the row has none" in told["none"]


def test_layers_with_a_state_are_not_split(checkpoints, tmp_path, capsys):
    pair = Pair(checkpoints("qwen3_5"), tmp_path / "hybrid")
    for command in ("validate", "run"):
        words = pair.words(command, dataset_path=few(tmp_path, 1), work_dir=tmp_path / "work", zero3="on")
        assert main(words) == 2
        told = capsys.readouterr().err
        assert f"{pair.instruct} has layers with a recurrent state" in told
        assert "set --zero3 off" in told
        assert "Traceback" not in told
