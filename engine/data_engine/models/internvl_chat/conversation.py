"""The chat formats of InternVL's own layout, which its config.json names, as templates for transformers.

Source of formats and system texts: conversation.py of InternVL's repository. A folder's own conversation.py is read as
text, for its system text, and must have the same format; it is never run.
"""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_engine.models.checkpoints.json_files import ModelError, reason
from data_engine.models.internvl_chat import IMAGE_TOKEN
from data_engine.store.absent import is_file

_EARLIER = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_LATER = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"


@dataclass(frozen=True)
class Conversation:
    """One format: each turn is what opens its role, its text, and what ends it."""

    system: str
    """what the system turn says where a row brings none"""
    opens: Mapping[str, str]
    end: str


_CHATML = {role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")}
_PHI3 = {role: f"<|{role}|>\n" for role in ("system", "user", "assistant")}
CONVERSATIONS: Mapping[str, Conversation] = {
    "Hermes-2": Conversation(_EARLIER, _CHATML, "<|im_end|>"),
    "internlm2-chat": Conversation(_EARLIER, _CHATML, "<|im_end|>"),
    "phi3-chat": Conversation(_EARLIER, _PHI3, "<|end|>"),
    "internvl2_5": Conversation(_LATER, _CHATML, "<|im_end|>\n"),
}
# Formats that InternVL 1.5 has by the same name as 2, with another system text; their config.json have the same fields.
_ALSO_OF_1_5 = ("internlm2-chat", "phi3-chat")
# The file of a folder that has its formats.
FILE = "conversation.py"


def conversation_of(folder: Path, raw: Mapping) -> Conversation:
    """The format that config.json names, with the system text of config.json, else of the folder's conversation.py.

    Raises ModelError for a format of another form, and where neither file tells the system text of 1.5 from that of 2.
    """
    name = raw.get("template")
    if name not in CONVERSATIONS:
        raise ModelError(
            f"{folder / 'config.json'} has template {name!r}; of internvl_chat these are supported: "
            f"{', '.join(CONVERSATIONS)}"
        )
    in_file = _in_file(folder / FILE, name)
    _refuse_another_form(folder / FILE, name, in_file)
    told = raw.get("system_message")
    if told is None:
        told = in_file.get("system_message")
    if told is None and name in _ALSO_OF_1_5:
        raise ModelError(
            f"{folder / 'config.json'} has template {name!r}, which InternVL 1.5 and 2 have with different system "
            f"texts, and {folder} has no {FILE} that says which: put the {FILE} that was published with the weights "
            "there, or system_message into config.json"
        )
    if told is None:
        return CONVERSATIONS[name]
    if not isinstance(told, str):
        raise ModelError(f"{folder / 'config.json'} has system_message {told!r}; expected a text")
    return replace(CONVERSATIONS[name], system=told)


def chat_template(conversation: Conversation) -> str:
    """The same as a template of Jinja: an image is its token and a line feed, as the repository puts `<image>`."""
    system = f"[{{'role': 'system', 'content': {_quoted(conversation.system)}}}]"
    opens = "".join(
        f"{{%- {'if' if number == 0 else 'elif'} message['role'] == {_quoted(role)} -%}}{{{{ {_quoted(text)} }}}}"
        for number, (role, text) in enumerate(conversation.opens.items())
    )
    return (
        "{%- if messages and messages[0]['role'] == 'system' -%}{%- set turns = messages -%}"
        f"{{%- else -%}}{{%- set turns = {system} + messages -%}}{{%- endif -%}}"
        "{%- for message in turns -%}"
        "{%- if message['role'] == 'system' and not loop.first -%}"
        "{{ raise_exception('a system message must be the first') }}{%- endif -%}"
        f"{opens}{{%- else -%}}{{{{ raise_exception('unknown role ' + message['role']) }}}}{{%- endif -%}}"
        "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
        "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}"
        f"{{{{ {_quoted(IMAGE_TOKEN + chr(10))} }}}}"
        "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}"
        f"{{{{ {_quoted(conversation.end)} }}}}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{ {_quoted(conversation.opens['assistant'])} }}}}{{%- endif -%}}"
    )


def _quoted(text: str) -> str:
    """As a literal of Jinja's, which knows JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)


def _in_file(path: Path, name: str) -> dict[str, object]:
    """What a folder's conversation.py says of a format, as far as it is plain literals; nothing without the file."""
    if not is_file(path):
        return {}
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    # RecursionError and MemoryError: of a file that was made to break the parser.
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(
            f"{path} cannot be read ({reason(error)}): download it again, or remove it for the format of InternVL's "
            "repository"
        ) from error
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        given = {one.arg: _literal(one.value) for one in call.keywords if one.arg}
        if given.get("name") == name:
            return {field: value for field, value in given.items() if value is not None}
    return {}


def _literal(node: ast.expr) -> object:
    """The value of a literal, or the name of an attribute, as SeparatorStyle.MPT has it; None of anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _refuse_another_form(path: Path, name: str, told: Mapping[str, object]) -> None:
    """Raise ModelError where a folder's conversation.py puts its turns together in another way."""
    known = CONVERSATIONS[name]
    expected = {
        "system_template": known.opens["system"] + "{system_message}",
        "roles": (known.opens["user"], known.opens["assistant"]), "sep": known.end, "sep_style": "MPT",
    }  # fmt: skip
    for field, value in expected.items():
        if told.get(field, value) != value:
            raise ModelError(
                f"{path} has {field} {told[field]!r} in its {name}; expected {value!r}: this form of the format is not "
                "supported"
            )
