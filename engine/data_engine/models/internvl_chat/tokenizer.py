"""The tokenizer of a folder in InternVL's own layout, without the code that some bring.

InternLM's is remote code around a SentencePiece model; it and LLaMA's are built anew from tokenizer.model, and held
against SentencePiece's own ids before they are used.
"""

from pathlib import Path

import transformers
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data_engine.models.checkpoints.json_files import ModelError, read_json, refuse_pointer
from data_engine.models.internvl_chat import IMAGE_END, IMAGE_START, IMAGE_TOKEN
from data_engine.models.internvl_chat.sentencepiece_bpe import build
from data_engine.models.tokenizer import added_tokens
from data_engine.store.absent import is_file

# By the class that tokenizer_config.json names, without "Fast".
_FROM_MODEL = ("InternLM2Tokenizer", "InternLM3Tokenizer", "LlamaTokenizer")
_OF_TRANSFORMERS = ("Qwen2Tokenizer", "PreTrainedTokenizer")
# Names under which transformers' processor asks for its tokens. Films are not read: no text has the mark of one.
NAMED = {
    "start_image_token": IMAGE_START, "end_image_token": IMAGE_END, "context_image_token": IMAGE_TOKEN,
    "video_token": "\ufdd0",
}  # fmt: skip
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises ModelError for a tokenizer of another kind, and for files that are missing or contradict each other."""
    told = read_json(folder / "tokenizer_config.json")
    kind = str(told.get("tokenizer_class")).removesuffix("Fast")
    if kind in _FROM_MODEL and not (kind == "LlamaTokenizer" and is_file(folder / "tokenizer.json")):
        made = _from_model(folder, told, kind)
    elif kind in (*_OF_TRANSFORMERS, *_FROM_MODEL):
        made = _of_transformers(folder, kind)
    else:
        known = ", ".join((*_OF_TRANSFORMERS, *_FROM_MODEL))
        raise ModelError(
            f"{folder / 'tokenizer_config.json'} has tokenizer_class {told.get('tokenizer_class')!r}; of internvl_chat "
            f"these are supported, with or without Fast: {known}"
        )
    for token, number in added_tokens(folder).items():
        if made.convert_tokens_to_ids(token) != number:
            raise ModelError(f"{folder} gives the token {token} the id {number}, its tokenizer {_id(made, token)}")
    for name, token in NAMED.items():
        setattr(made, name, token)
        setattr(made, f"{name}_id", _id(made, token))
    return made


def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    return tokenizer.get_vocab().get(token)


def _of_transformers(folder: Path, kind: str) -> PreTrainedTokenizerBase:
    """Qwen's from vocab.json and merges.txt, or whatever tokenizer.json holds."""
    whole = is_file(folder / "tokenizer.json")
    found = transformers.Qwen2Tokenizer if kind == "Qwen2Tokenizer" else PreTrainedTokenizerFast
    missing = [name for name in ("vocab.json", "merges.txt") if not is_file(folder / name)]
    if not whole and (kind != "Qwen2Tokenizer" or missing):
        raise ModelError(f"{folder} has no {missing[0] if kind == 'Qwen2Tokenizer' else 'tokenizer.json'}")
    return found.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _from_model(folder: Path, told: dict, kind: str) -> PreTrainedTokenizerBase:
    path = folder / "tokenizer.model"
    if not is_file(path):
        raise ModelError(f"{folder} has no tokenizer.model")
    refuse_pointer(path)
    added = _added(folder, told)
    # transformers took a missing flag for the older behaviour, which puts a space before each text.
    first_alone = kind == "LlamaTokenizer" and told.get("legacy") is False
    stamp = path.stat()
    renamed = tuple((number, token.content) for number, token in added.items())
    backend = Tokenizer.from_str(build(path, (stamp.st_size, stamp.st_mtime_ns), first_alone, renamed))
    # In the order of their ids: what the model does not have is numbered as it is added.
    backend.add_tokens([token for _, token in sorted(added.items(), key=lambda entry: entry[0])])
    named = {name: _text(told[name]) for name in _SPECIAL if told.get(name) is not None}
    if told.get("add_bos_token", True):
        begin = named.get("bos_token")
        if begin is None or backend.token_to_id(begin) is None:
            raise ModelError(f"{folder / 'tokenizer_config.json'} has add_bos_token, and its bos_token is {begin!r}")
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, backend.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)


def _added(folder: Path, told: dict) -> dict[int, AddedToken]:
    """Added tokens by id, with their flags; matched in the text as it stands, whatever their flag `normalized`."""
    flags = told.get("added_tokens_decoder") or {}
    special = {_text(one) for one in told.get("additional_special_tokens") or ()}
    special |= {_text(told[name]) for name in _SPECIAL if told.get(name) is not None}
    made = {}
    for token, number in added_tokens(folder).items():
        of = flags.get(str(number), {})
        strips = {name: bool(of.get(name, False)) for name in ("lstrip", "rstrip", "single_word")}
        made[number] = AddedToken(token, special=bool(of.get("special", token in special)), normalized=False, **strips)
    return made


def _text(token: str | dict) -> str:
    return token if isinstance(token, str) else token["content"]
