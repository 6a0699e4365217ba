"""What the tiny checkpoints are made of: tokenizer, chat templates, configurations of parts, weights, pictures."""

from functools import partial

import torch
import torchvision_names  # noqa: F401, before transformers
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

VOCABULARY, WIDTH, LAYERS = 400, 64, 3
BOS, EOS, PAD = 256, 257, 258
SIZE = {"height": 28, "width": 28}


def tokenizer(specials=(), eos="</s>", **named):
    """Bytes, then <s>, `eos` and <pad>, then special tokens; those of `named` are attributes, as image_token is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token=eos, pad_token="<pad>", extra_special_tokens=dict(named)
    )
    made.add_special_tokens({"additional_special_tokens": list(specials)}, replace_extra_special_tokens=False)
    assert ids(made, "<s>", eos, "<pad>") == [BOS, EOS, PAD]
    return made


def ids(tokens, *names) -> list[int]:
    return [tokens.convert_tokens_to_ids(name) for name in names]


def template(user, end, assistant, image, bos="", end_of_answer=None) -> str:
    """A chat template in the manner of most: a system turn, turns of a user with images, turns of an assistant."""
    close = end if end_of_answer is None else end_of_answer
    return (
        f"{bos}{{% for m in messages %}}"
        f"{{% if m.role == 'user' %}}{user}{{% elif m.role == 'system' %}}system: {{% else %}}{assistant}{{% endif %}}"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
        f"{{% if c.type == 'image' %}}{image}{{% else %}}{{{{ c.text }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
        f"{{% if m.role == 'assistant' %}}{close}{{% else %}}{end}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


chatml = partial(template, "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n")


def text(kind="LlamaConfig", **more):
    """The text model's configuration."""
    shared = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "head_dim": 16,
        "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
    }  # fmt: skip
    return getattr(tf, kind)(**shared | more)


TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def clip():
    return tf.CLIPVisionConfig(**TOWER, image_size=28, patch_size=14, projection_dim=32)


def siglip(patch=14, **more):
    return tf.SiglipVisionConfig(**TOWER, image_size=28, patch_size=patch, **more)


def llava_processor(tokens, chat_template):
    """LLaVA's, for the tower `clip` makes."""
    return tf.LlavaProcessor(
        tf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SIZE), tokens, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=chat_template,
    )  # fmt: skip


def minicpm_processor(kind, pixels=None):
    """MiniCPM-V's, which cuts a picture into slices. `kind`: the prefix of the classes' names."""
    named = {"image_token": "<image_pad>", "video_token": "<video_pad>"}
    for part in ("image", "slice", "image_id"):
        named |= {f"{part}_start_token": f"<{part}>", f"{part}_end_token": f"</{part}>"}
    tokens = tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", **named)
    pixels = (pixels or tf.MiniCPMV4_6ImageProcessorPil)(scale_resolution=112, patch_size=14, max_slice_nums=4)
    video = getattr(tf, f"{kind}VideoProcessor", tf.MiniCPMV4_6VideoProcessor)()
    return getattr(tf, f"{kind}Processor")(pixels, video, tokens, chat_template=chatml("<image_pad>"))


def build(cls, config, embed=0.5, tied=False):
    """A model with weights large enough that attention, positions and the picture move its logits.

    With a head of its own, unless `tied`: random tied weights say the token that they were fed, again and again.
    """
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = tied
    torch.manual_seed(0)
    model = cls(config).eval()
    for name, weight in model.named_parameters():
        if weight.ndim >= 2 and "rel" not in name:
            nn.init.normal_(weight, std=embed if "embed" in name else 1.2 / weight.shape[-1] ** 0.5)
    if tied:
        # Logits as large as those of the other heads.
        nn.init.constant_(model.get_decoder().norm.weight, 1.2 / WIDTH**0.5 / embed)
    return model


def still(processor):
    """A processor class without a video processor: those need torchvision, and images do not need them."""
    wanted = [name for name in processor.get_attributes() if "video" not in name and "feature" not in name]
    return type(processor.__name__, (processor,), {"get_attributes": classmethod(lambda cls: wanted)})


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Large random blots, the same each time."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height // 7 + 1, width // 7 + 1, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((width, height))
