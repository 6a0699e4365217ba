"""The LLaVA-1.5 family: a CLIP tower, a two-layer projector, a LLaMA decoder; llava-1.5-7b and RLAIF-V-7B.

Reads both published layouts, the original one (`mm_vision_tower`, `model.mm_projector`) and transformers'
(LlavaForConditionalGeneration). Prompts and pixels are those of the reference's sampling and scoring paths.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

from data_engine.models import attention
from data_engine.models.base import IMAGE_TOKEN, Split
from data_engine.models.checkpoint import Filler, tensor_names
from data_engine.models.decoder import cache_values_per_token, decoder_config, head_weight
from data_engine.models.pixels import CLIP_MEAN, normalised, resized
from data_engine.models.registry import ModelError, fetch, model_types, read_json, resolve
from data_engine.models.tokenizer import Tokenizer, continuation, load_tokenizer
from data_engine.questions.images import check_megapixels, resized_size
from data_engine.schemas import without_image_marker

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
PADDING = tuple(int(255 * mean) for mean in CLIP_MEAN)

# Patterns of weight names, in both layouts and a CLIP folder -> our prefix; the first match counts.
RENAMES = [
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?", "vision."),
        (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision."),
        (r"^vision_model\.", "vision."),
        (r"^(?:model\.)?multi_modal_projector\.linear_1\.", "projector.0."),
        (r"^(?:model\.)?multi_modal_projector\.linear_2\.", "projector.2."),
        (r"^model\.mm_projector\.", "projector."),
        (r"^(?:language_model\.)?lm_head\.", "head."),
        (r"^language_model\.model\.", "decoder."),
        (r"^model\.language_model\.", "decoder."),
        (r"^model\.", "decoder."),
    )
]
# Known weights that are not needed: rotary tables, CLIP's text tower, position ids, and the tower's last norm.
IGNORED = re.compile(
    r"rotary_emb\.inv_freq$|^text_model\.|^text_projection\.|^visual_projection\.|^logit_scale$"
    r"|embeddings\.position_ids$|vision\S*\.post_layernorm\."
)
KNOWN_TOWERS = {
    "clip-vit-large-patch14-336": CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )
}  # fmt: skip


@dataclass(frozen=True)
class LlavaConfig:
    """The configuration of a checkpoint, from either layout."""

    text: LlamaConfig
    vision: CLIPVisionConfig
    vision_layers: int
    """layers of the tower up to the features that are used"""
    drop_cls: bool
    tower_folder: Path | None
    """folder of CLIP's weights, if they are not in the checkpoint"""


class _Modules(nn.Module):
    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        vision = CLIPVisionConfig.from_dict(config.vision.to_dict() | {"num_hidden_layers": config.vision_layers})
        vision._attn_implementation = "sdpa"
        config.text._attn_implementation = attention.NAME
        self.vision = CLIPVisionModel(vision)
        width = config.text.hidden_size
        self.projector = nn.Sequential(nn.Linear(vision.hidden_size, width), nn.GELU(), nn.Linear(width, width))
        self.decoder = LlamaModel(config.text)
        if not config.text.tie_word_embeddings:
            self.head = nn.Linear(width, config.text.vocab_size, bias=False)
        # The pooled output is not used, so its norm is not loaded.
        inner = getattr(self.vision, "vision_model", self.vision)
        inner.post_layernorm = nn.Identity()


class Llava:
    """One LLaVA checkpoint; the protocol is models.base.VisionLanguageModel."""

    family = "llava"
    is_split = False
    markers = ("<image>", "</s>", " ASSISTANT: ")

    def __init__(self, modules: _Modules, config: LlavaConfig, tokenizer: Tokenizer) -> None:
        self._modules, self._config, self._tokenizer = modules.eval(), config, tokenizer
        self.vision, self.decoder, self._embedding = modules.vision, modules.decoder, modules.decoder.embed_tokens
        self.head_weight = head_weight(modules)
        self.device, self.dtype = self.head_weight.device, self.head_weight.dtype
        self.eos_token_ids = (tokenizer.eos,)
        self.max_positions = config.text.max_position_embeddings
        self.vocabulary = tokenizer.vocabulary
        grid = config.vision.image_size // config.vision.patch_size
        self.image_tokens = grid**2 if config.drop_cls else grid**2 + 1

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype, split: Split | None = None) -> "Llava":
        """Read a checkpoint folder; raises ModelError naming what is missing, unexpected or contradictory."""
        config = read_config(folder, _carries_tower(folder))
        tokenizer = load_tokenizer(folder)
        with init_empty_weights(include_buffers=False):
            modules = _Modules(config)
        filler = Filler(modules, device, dtype, split)
        unused = re.compile(rf"{IGNORED.pattern}|vision\S*\.encoder\.layers\.(?:{_unused_layers(config)})\.")
        rename = _renamer(modules)
        if config.text.tie_word_embeddings:
            unused = re.compile(rf"{unused.pattern}|lm_head\.weight$")
        filler.fill(folder, rename, unused)
        if config.tower_folder is not None:
            filler.fill(config.tower_folder, rename, unused)
        filler.done(folder)
        return cls(modules.to(device), config, tokenizer)

    @staticmethod
    def cache_values_per_token(folder: Path) -> int:
        """Numbers in the key/value cache for one token, all layers."""
        raw, where = read_json(folder / "config.json"), folder / "config.json"
        return cache_values_per_token(_llama_config(raw.get("text_config", raw), where))

    @staticmethod
    def folders(folder: Path) -> list[Path]:
        """Its own, and that of the CLIP tower where the checkpoint does not hold it."""
        tower = read_config(folder, _carries_tower(folder)).tower_folder
        return [folder] if tower is None else [folder, tower]

    def pixels(self, image: Image.Image, crop: bool, max_megapixels: float) -> Tensor:
        return preprocess(image, self._config.vision.image_size, crop, max_megapixels)

    def prompt_ids(self, question: str) -> list[int]:
        # As in the reference, the texts before and after the image are tokenised separately: each has a dummy space.
        before = self._tokenizer.encode(f"{SYSTEM} USER: ")
        return [self._tokenizer.bos, *before, IMAGE_TOKEN, *self._tokenizer.encode(_after_image(question))]

    def answer_ids(self, question: str, answer: str) -> list[int]:
        if not answer:
            return [self._tokenizer.eos]
        return [*continuation(self._tokenizer, _after_image(question), f" {answer}"), self._tokenizer.eos]

    def text(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids).strip()

    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        features = self.vision(pixel_values=pixels_BCHW.to(self.dtype)).last_hidden_state
        return self._modules.projector(features[:, 1:] if self._config.drop_cls else features)

    def embed_tokens(self, token_ids_T: Tensor) -> Tensor:
        return self._embedding(token_ids_T)


def _after_image(question: str) -> str:
    """The prompt from the image to the start of the answer. A literal `<image>` in the question is deleted."""
    return f"\n{without_image_marker(question)} ASSISTANT:"


def preprocess(image: Image.Image, size: int, crop: bool, max_megapixels: float) -> Tensor:
    """CLIP's preprocessing of an RGB image, [3, size, size] fp32.

    With `crop`, the short edge is resized and the centre cut out, as the reference's scoring and its trainer do; else
    the image is first padded to a square, as its sampling does. Bicubic on 8 bits, then (x / 255 - mean) / std.
    Raises images.BadImage where a padded or resized image would exceed max_megapixels.
    """
    side, target = max(image.size), resized_size(*image.size, size)
    # Both ways are checked in either stage, so that no answer is sampled that cannot be scored.
    check_megapixels(side, side, max_megapixels, "padded image")
    check_megapixels(*target, max_megapixels, "resized image")
    if not crop:
        square = Image.new("RGB", (side, side), PADDING)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image, target = square, (size, size)
    image = resized(image, target)
    left, top = (target[0] - size) // 2, (target[1] - size) // 2
    return normalised(image.crop((left, top, left + size, top + size)))


def _carries_tower(folder: Path) -> bool:
    """Whether the checkpoint holds the weights of its CLIP tower."""
    return any(_rename(name).startswith("vision.") for name in tensor_names(folder))


def _rename(name: str) -> str:
    for pattern, ours in RENAMES:
        renamed, count = pattern.subn(ours, name)
        if count:
            return renamed
    return name


def _renamer(modules: _Modules):
    """_rename for the installed transformers, whose CLIP tower may have a `vision_model` level."""
    inner = "vision.vision_model." if hasattr(modules.vision, "vision_model") else "vision."
    return lambda name: re.sub(r"^vision\.", inner, _rename(name))


def _unused_layers(config: LlavaConfig) -> str:
    return "|".join(map(str, range(config.vision_layers, config.vision.num_hidden_layers))) or "none"


def read_config(folder: Path, carries_tower: bool) -> LlavaConfig:
    """config.json of either layout. Raises ModelError naming the field that is missing or not supported."""
    raw = read_json(folder / "config.json")
    where = folder / "config.json"
    if "text_config" in raw or "vision_config" in raw:
        return _transformers_config(raw, where)
    _expect(raw, where, "mm_projector_type", "mlp2x_gelu")
    _expect(raw, where, "mm_use_im_start_end", False)
    _expect(raw, where, "mm_use_im_patch_token", False)
    tower = raw.get("mm_vision_tower")
    if not isinstance(tower, str) or not tower:
        raise ModelError(f"{where} has no mm_vision_tower: the name or folder of the CLIP tower")
    tower_folder, vision = _find_tower(folder, tower, carries_tower)
    return LlavaConfig(
        text=_llama_config(raw, where),
        vision=vision,
        vision_layers=_layers(vision, raw.get("mm_vision_select_layer", -2), where),
        drop_cls=_select_patches(raw.get("mm_vision_select_feature", "patch"), where),
        tower_folder=None if carries_tower else tower_folder,
    )


def _transformers_config(raw: dict, where: Path) -> LlavaConfig:
    for name in ("text_config", "vision_config"):
        if not isinstance(raw.get(name), dict):
            raise ModelError(f"{where} has no {name}")
    vision = CLIPVisionConfig.from_dict(raw["vision_config"])
    return LlavaConfig(
        # transformers stores tie_word_embeddings at the top level, which overrides the default of the text part.
        text=_llama_config(raw["text_config"] | {"tie_word_embeddings": raw.get("tie_word_embeddings", False)}, where),
        vision=vision,
        vision_layers=_layers(vision, raw.get("vision_feature_layer", -2), where),
        drop_cls=_select_patches(raw.get("vision_feature_select_strategy", "default"), where),
        tower_folder=None,
    )


def _expect(raw: dict, where: Path, field: str, value: object) -> None:
    if raw.get(field, value) != value:
        raise ModelError(f"{where} has {field} {raw[field]!r}; this family supports {value!r}")


def _llama_config(raw: dict, where: Path) -> LlamaConfig:
    return decoder_config(LlamaConfig, raw, where, types=tuple(model_types()))


def _layers(vision: CLIPVisionConfig, select: int, where: Path) -> int:
    """Layers up to the selected hidden state. There is one state more than layers: -2 is that before the last layer."""
    layers = vision.num_hidden_layers + 1 + select if select < 0 else select
    if not 0 <= layers <= vision.num_hidden_layers:
        raise ModelError(f"{where} selects vision layer {select}, the tower has {vision.num_hidden_layers} layers")
    return layers


def _select_patches(feature: str, where: Path) -> bool:
    known = {"patch": True, "default": True, "cls_patch": False, "full": False}
    if feature not in known:
        raise ModelError(f"{where} selects vision feature {feature!r}; known: {', '.join(known)}")
    return known[feature]


def _find_tower(folder: Path, tower: str, carries_tower: bool) -> tuple[Path | None, CLIPVisionConfig]:
    """The CLIP folder: in the checkpoint, beside it, an absolute path, or a hub id; never in the working directory."""
    base = Path(tower).name
    places = [folder / tower, folder / base, folder.parent / tower, folder.parent / base]
    places = [place for place in places if place.resolve() not in (folder.resolve(), folder.parent.resolve())]
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None and carries_tower and base in KNOWN_TOWERS:
        return None, KNOWN_TOWERS[base]
    if found is None:
        try:
            found = resolve(tower) if Path(tower).is_absolute() else fetch(tower)
        except ModelError as error:
            looked = ", ".join(map(str, places))
            raise ModelError(f"no CLIP tower {tower!r}: looked in {looked}, and {error}") from error
    raw = read_json(found / "config.json")
    return found, CLIPVisionConfig.from_dict(raw.get("vision_config", raw))
