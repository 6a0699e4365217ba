"""Tokenizers of the tiny checkpoints in InternVL's own layout: the files of a folder of OpenGVLab's, by hand."""

import io
import json
import random
from pathlib import Path

import sentencepiece
from tokenizers import pre_tokenizers

IMAGE = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]


def write_json(path: Path, told: dict) -> None:
    path.write_text(json.dumps(told, ensure_ascii=False))


def write_tokenizer(folder: Path, kind: str) -> int:
    """The files of its tokenizer; how many ids there are."""
    if kind.startswith("internlm"):
        return _write_internlm(folder, "InternLM2" if kind == "internlm2" else "InternLM3")
    if kind in ("phi3", "llama"):
        return _write_llama(folder, kind)
    return _write_qwen(folder)


def _token(text: str, **flags: bool) -> dict:
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": True, **flags}  # fmt: skip


def _write_qwen(folder: Path) -> int:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    write_json(folder / "vocab.json", {letter: number for number, letter in enumerate(letters)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE]
    numbered = {text: len(letters) + place for place, text in enumerate(added)}
    write_json(folder / "added_tokens.json", numbered)
    write_json(folder / "tokenizer_config.json", {
        "add_prefix_space": False, "tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "unk_token": None,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 8192, "errors": "replace",
        "added_tokens_decoder": {str(number): _token(text) for text, number in numbered.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", *IMAGE], "clean_up_tokenization_spaces": False,
        "chat_template": "{{ 'not this one' }}",
    })  # fmt: skip
    return len(letters) + len(added)


def train(pieces: int, **options: object) -> bytes:
    """A SentencePiece model of the kind BPE, with bytes for what it does not know."""
    draw, model = random.Random(0), io.BytesIO()
    words = ["what", "is", "in", "the", "picture", "how", "many", "a", "dog", "cats", "你是", "书生", "café", "(x)"]
    lines = [" ".join(draw.choices(words, k=draw.randrange(3, 12))) for _ in range(400)]
    usual = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
             "remove_extra_whitespaces": False, "minloglevel": 2}  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=pieces, **usual | options
    )
    return model.getvalue()


def _write_internlm(folder: Path, name: str) -> int:
    """As InternLM's: added tokens have the place of pieces that stand unused in the model; one is left over."""
    unused = [f"[UNUSED_TOKEN_{n}]" for n in range(3)]
    (folder / "tokenizer.model").write_bytes(train(360, add_dummy_prefix=False, user_defined_symbols=unused))
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    places = list(map(model.piece_to_id, unused))
    size = model.get_piece_size()
    numbered = {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": places[0], "<|im_start|>": places[1]}
    numbered |= {text: size + place for place, text in enumerate(IMAGE)}
    write_json(folder / "added_tokens.json", {text: numbered[text] for text in IMAGE})
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": f"{name}Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>",
        "auto_map": {"AutoTokenizer": [f"tokenization_{name.lower()}.{name}Tokenizer", None]}, "unk_token": "<unk>",
        "added_tokens_decoder": {str(number): _token(text) for text, number in numbered.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", *IMAGE], "model_max_length": 8192,
    })  # fmt: skip
    # Never to be run.
    (folder / f"tokenization_{name.lower()}.py").write_text("raise SystemExit('remote code was run')\n")
    return size + len(IMAGE)


def _write_llama(folder: Path, kind: str) -> int:
    (folder / "tokenizer.model").write_bytes(train(360))
    marks = ["<|im_start|>", "<|im_end|>"]
    marks = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"] if kind == "phi3" else marks
    numbered = {"<unk>": 0, "<s>": 1, "</s>": 2}
    numbered |= {text: 360 + place for place, text in enumerate([*marks, *IMAGE])}
    write_json(folder / "added_tokens.json", {text: number for text, number in numbered.items() if number >= 360})
    # As Phi-3's, whose marks swallow the line feed behind them.
    flags = {text: {"rstrip": kind == "phi3" and text in marks} for text in numbered}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": marks[0] if kind == "phi3" else "</s>",
        "unk_token": "<unk>", "pad_token": "<unk>", "legacy": kind == "llama", "add_bos_token": kind == "phi3",
        "added_tokens_decoder": {str(number): _token(text, **flags[text]) for text, number in numbered.items()},
        "additional_special_tokens": IMAGE, "model_max_length": 8192,
    })  # fmt: skip
    return 360 + len(marks) + len(IMAGE)
