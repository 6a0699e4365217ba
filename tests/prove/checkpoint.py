"""The demo's LLaVA in the layout of transformers, with a processor, as a trainer takes it: a folder in, a folder out.

Its chat template and tokenizer give the engine's own prompt, token by token; `train.py` checks it on every row.
"""

import shutil
import sys
from pathlib import Path

import sentencepiece
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers import models as tokenizer_models

from data_engine.demo.models import CLIP, LLAMA, PIXEL_MEAN, PIXEL_STD, SIDE
from data_engine.demo.tokenizer import BEFORE_IMAGE, BOS, EOS, PAD, VOCAB_SIZE
from data_engine.demo.world import SIZE

# One row behind the vocabulary, as in llava-hf/llava-1.5-7b-hf; no model ever says it.
IMAGE_TOKEN = VOCAB_SIZE
# Each text between two special tokens has a dummy space in front, which is why none is written here.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if message['role'] == 'assistant' %}{{ part['text'] + eos_token }}"
    "{% elif part['type'] == 'image' %}{{ '" + BEFORE_IMAGE.replace("'", "\\'") + "<image>' }}"
    "{% else %}{{ '\\n' + part['text'] + ' ASSISTANT:' }}{% endif %}{% endfor %}{% endfor %}"
)


def to_transformers(source: Path, target: Path) -> None:
    """Write the model of `source`, in the published layout, as a LlavaForConditionalGeneration, with its processor."""
    weights = load_file(source / "model.safetensors")
    model = transformers.LlavaForConditionalGeneration(_config()).float()
    names = {_renamed(name): value for name, value in weights.items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = names.pop(name.replace("vision_tower.vision_model.", "vision_tower."))
            parameter.zero_()
            # The embeddings and the head have one row more.
            parameter[: len(value)] = value.float()
        # All zero, its logit would be 0, whatever the others are; the mean of all is never near the best.
        head = model.lm_head.weight
        head[IMAGE_TOKEN] = head[:IMAGE_TOKEN].mean(0)
    assert not names, f"weights without a place: {sorted(names)}"
    model.save_pretrained(target)
    _processor(source / "tokenizer.model").save_pretrained(target)
    # The engine reads it where it is there, so that both encode by their own code.
    shutil.copyfile(source / "tokenizer.model", target / "tokenizer.model")


def _config() -> transformers.LlavaConfig:
    return transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP).to_dict(),
        text_config=transformers.LlamaConfig(**LLAMA | {"vocab_size": VOCAB_SIZE + 1}).to_dict(),
        image_token_index=IMAGE_TOKEN, image_seq_length=SIDE**2, projector_hidden_act="gelu",
        vision_feature_layer=-2, vision_feature_select_strategy="default", tie_word_embeddings=False,
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip


def _renamed(name: str) -> str:
    """From the published layout's name of a weight to transformers'."""
    for old, new in (
        ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
        ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
        ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
        ("lm_head.", "lm_head."),
        ("model.", "model.language_model."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise ValueError(f"a weight called {name} is not known")


def _processor(tokenizer_model: Path) -> transformers.LlavaProcessor:
    image_processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return transformers.LlavaProcessor(
        image_processor=image_processor(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE},
            image_mean=PIXEL_MEAN, image_std=PIXEL_STD,
        ),
        tokenizer=tokenizer_of(tokenizer_model), patch_size=CLIP["patch_size"],
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def tokenizer_of(tokenizer_model: Path) -> transformers.PreTrainedTokenizerFast:
    """The SentencePiece model as a tokenizer of transformers, the way LLaMA's tokenizer.json is made from its own:
    a space in front of each text, spaces as U+2581, and the pair whose piece has the best score merged first.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    vocabulary = {pieces.id_to_piece(number): number for number in range(len(pieces))}
    merges = [
        (piece[:at], piece[at:])
        # Pieces come by their scores, best first.
        for piece in sorted(vocabulary, key=vocabulary.get)
        if len(piece) > 1 and pieces.is_byte(vocabulary[piece]) + pieces.is_control(vocabulary[piece]) == 0
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    core = Tokenizer(tokenizer_models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>", "<image>")])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>",
        additional_special_tokens=["<image>"], model_max_length=2048,
    )  # fmt: skip


if __name__ == "__main__":
    to_transformers(Path(sys.argv[1]), Path(sys.argv[2]))
