"""What the check of several checkpoints says of them together, by stand-ins for what each of them is."""

from types import SimpleNamespace

import pytest

from data_engine.models import check
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.roles import naming_flag

ROLES = ("instruct", "reward")


@pytest.fixture
def checked(monkeypatch):
    """Checks two models of which `unread` are the arguments that no template reads, `broken` those that are wrong."""

    def checking(unread: dict, broken: tuple = (), zero3: str = "off", indivisible: tuple = ()) -> list[str]:
        def weights(folder, *_, **__):
            if folder in broken:
                raise ModelError("is cut")

        def split(folder):
            if folder in indivisible:
                raise ModelError("cannot be split")

        code = SimpleNamespace(
            check_split=split, text_side=lambda folder, chat: SimpleNamespace(unused_kwargs=unread.get(folder, ()))
        )
        monkeypatch.setattr(check, "check_weights", weights)
        monkeypatch.setattr(check, "class_for", lambda *_: code)
        monkeypatch.setattr(check, "family_class", lambda _: code)
        chat = SimpleNamespace(kwargs={"thinking": False, "style": "brief"})
        paths = {f"{role}_model_path": f"/{role}" for role in ROLES}
        config = SimpleNamespace(zero3=zero3, chat_of=lambda role: chat, **paths)
        sound: list[str] = []
        check.check_loadable(config, dict(zip(ROLES, ROLES, strict=True)), dict.fromkeys(ROLES, "auto"), sound)
        return sound

    return checking


def test_an_argument_that_one_template_reads_is_no_mistake(checked):
    assert checked({"instruct": ("style",), "reward": ("thinking",)}) == [*ROLES]
    with pytest.raises(ModelError, match="chat_template_kwargs has style, which no chat template of this run reads"):
        checked({"instruct": ("style", "thinking"), "reward": ("style",)})


def test_the_template_of_a_checkpoint_that_is_wrong_may_be_the_one_that_reads_them(checked):
    with pytest.raises(ModelError) as refused:
        checked(dict.fromkeys(ROLES, ("style",)), broken=("reward",))
    assert str(refused.value) == '--reward_model_path "/reward": is cut'


def test_a_mistake_that_both_have_is_told_once(checked):
    with pytest.raises(ModelError) as refused:
        checked({}, broken=ROLES)
    assert str(refused.value) == '--instruct_model_path "/instruct" and --reward_model_path "/reward": is cut'


def test_what_cannot_be_split_is_refused_where_it_would_be_and_nowhere_else(checked):
    assert checked({}, indivisible=("reward",)) == [*ROLES]
    with pytest.raises(ModelError, match=r'^--reward_model_path "/reward": cannot be split'):
        checked({}, zero3="on", indivisible=("reward",))


def test_a_mistake_names_its_flag_once_however_often_it_is_to_name_it():
    config = SimpleNamespace(reward_model_path="/reward")
    with pytest.raises(ModelError) as refused, naming_flag(config, "reward"), naming_flag(config, "reward"):
        raise ModelError("is cut")
    assert str(refused.value) == '--reward_model_path "/reward": is cut'
