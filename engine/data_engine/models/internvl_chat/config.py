"""config.json of InternVL's own layout as an InternVLConfig of transformers; what that cannot be is refused."""

from collections.abc import Mapping
from pathlib import Path

from transformers import InternVLConfig, InternVLVisionConfig, PreTrainedConfig

from data_engine.models.checkpoints.json_files import ModelError, read_json
from data_engine.models.checkpoints.model_config import check_counts, described
from data_engine.models.internvl_chat import IMAGE_TOKEN
from data_engine.models.internvl_chat.conversation import conversation_of
from data_engine.models.internvl_chat.decoders import COMMON, DECODERS, Decoder
from data_engine.models.tokenizer import added_tokens

# Of vision_config: InternViT's names and transformers'.
_VISION = {
    "hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads", "num_channels": "num_channels", "image_size": "image_size",
    "patch_size": "patch_size", "hidden_act": "hidden_act", "layer_norm_eps": "layer_norm_eps",
    "norm_type": "norm_type", "qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm",
    "initializer_range": "initializer_range",
}  # fmt: skip
# InternVisionConfig's own, where transformers' default is another.
_VISION_DEFAULTS = {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False, "image_size": 224}
_VISION_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
_TEXT_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_MOST_TILES = 1000
# The port's norms of queries and keys have this one alone.
_QK_NORM_EPS = 1e-6


def read_config(folder: Path) -> InternVLConfig:
    """Raises ModelError for a field that is missing or wrong, and for a model that the port does not compute."""
    where = folder / "config.json"
    raw = read_json(where)
    _refuse_others(raw, where)
    conversation_of(folder, raw)
    tiles(raw, where)
    decoder, told = decoder_of(raw, where)
    vision = _section(raw, "vision_config", where, _VISION_SIZES)
    text = described(where, lambda: _text(decoder, told))
    config = described(where, lambda: InternVLConfig(
        vision_config=_vision(vision, where), text_config=text, image_token_id=image_token_id(folder),
        image_seq_length=image_tokens(raw, where), downsample_ratio=raw.get("downsample_ratio", 0.5),
        tie_word_embeddings=is_tied(raw), projector_hidden_act="gelu", vision_feature_layer=-1,
    ))  # fmt: skip
    config.architectures = ["InternVLForConditionalGeneration"]
    return config


def decoder_of(raw: Mapping, where: Path) -> tuple[Decoder, dict]:
    """The kind of text decoder, and llm_config."""
    told = _section(raw, "llm_config", where, _TEXT_SIZES)
    named = told.get("architectures")
    kind = named[0] if isinstance(named, list) and named else None
    if kind not in DECODERS:
        raise ModelError(
            f"{where} has an llm_config of the architecture {kind!r}; of internvl_chat these are supported: "
            f"{', '.join(DECODERS)}"
        )
    biased = next((name for name in ("bias", "qkv_bias") if told.get(name)), None)
    if biased is not None and kind.startswith("InternLM"):
        raise ModelError(
            f"{where} has an llm_config with {biased}, which no published InternVL has: it is not supported"
        )
    return DECODERS[kind], told


def tiles(raw: Mapping, where: Path) -> tuple[int, int]:
    """Least and most tiles of a picture, the thumbnail not counted."""
    check_counts(raw, where, ("min_dynamic_patch", "max_dynamic_patch"), _MOST_TILES)
    least, most = raw.get("min_dynamic_patch", 1), raw.get("max_dynamic_patch", 6)
    if not raw.get("dynamic_image_size", False):
        return 1, 1
    if least > most:
        raise ModelError(f"{where} has min_dynamic_patch {least} above max_dynamic_patch {most}")
    if most > 1 and not raw.get("use_thumbnail", False):
        raise ModelError(f"{where} has use_thumbnail false: tiles without a thumbnail are not supported")
    return least, most


def tile_size(raw: Mapping) -> int:
    """Pixels of a tile's side."""
    return raw.get("force_image_size") or raw["vision_config"].get("image_size", _VISION_DEFAULTS["image_size"])


def image_tokens(raw: Mapping, where: Path) -> int:
    """How many tokens a tile is. Raises ModelError where that is no whole number of patches."""
    check_counts(raw, where, ("force_image_size",), 1 << 14)
    vision, ratio = raw["vision_config"], raw.get("downsample_ratio", 0.5)
    check_counts(vision, where, ("image_size", "patch_size"), 1 << 14)
    size, patch = tile_size(raw), vision["patch_size"]
    if not isinstance(ratio, float) or ratio not in (0.5, 0.25):
        raise ModelError(f"{where} has downsample_ratio {ratio!r}; expected 0.5 or 0.25")
    side = size // patch * ratio
    if size % patch or side != int(side) or side < 1:
        raise ModelError(
            f"{where} has tiles of {size} pixels, patches of {patch} and downsample_ratio {ratio}: that is no whole "
            "number of tokens a side"
        )
    return int(side) ** 2


def image_token_id(folder: Path) -> int:
    """The id of <IMG_CONTEXT>, which stands for each token of a picture."""
    found = added_tokens(folder).get(IMAGE_TOKEN)
    if found is None:
        raise ModelError(
            f"{folder} has no {IMAGE_TOKEN} among its added tokens: expected it in added_tokens.json, "
            "tokenizer_config.json or tokenizer.json"
        )
    return found


def is_tied(raw: Mapping) -> bool:
    """Whether the head is the embeddings again; no published model's is."""
    return bool(raw.get("tie_word_embeddings", False))


def _section(raw: Mapping, name: str, where: Path, sizes: tuple[str, ...]) -> dict:
    found = raw.get(name)
    if not isinstance(found, dict):
        raise ModelError(f"{where} has no {name}: not a model of internvl_chat")
    check_counts(found, where, (*sizes, "num_key_value_heads", "head_dim"))
    missing = [size for size in sizes if found.get(size) is None]
    if missing:
        raise ModelError(f"{where} has no {missing[0]} in its {name}: not a model of internvl_chat")
    return found


def _refuse_others(raw: Mapping, where: Path) -> None:
    """Raise ModelError for what transformers' InternVL does not compute."""
    wanted = {
        "ps_version": (raw.get("ps_version", "v1"), "v2", "an InternVL before 1.5, which transposes its tiles"),
        "select_layer": (raw.get("select_layer", -1), -1, "an InternVL before 1.5, which reads an earlier layer"),
        "pad2square": (bool(raw.get("pad2square", False)), False, "pictures that are padded to squares"),
    }  # fmt: skip
    for name, (found, expected, what) in wanted.items():
        if found != expected:
            raise ModelError(
                f"{where} has {name} {found!r}; expected {expected!r}: {what}; InternVL 1.5, 2, 2.5, 3 and 3.5 are "
                "supported"
            )
    if raw.get("flash_mode"):
        raise ModelError(f"{where} has flash_mode {raw['flash_mode']!r}: InternVL3.5-Flash is not supported")
    for name in ("use_backbone_lora", "use_llm_lora"):
        if raw.get(name):
            raise ModelError(
                f"{where} has {name} {raw[name]!r}: its adapters stand beside the weights; merge them with "
                "tools/merge_lora.py of InternVL's repository, and pass what that writes"
            )


def _vision(told: Mapping, where: Path) -> InternVLVisionConfig:
    known = {**_VISION_DEFAULTS, **told}
    if known["qk_normalization"] and known.get("layer_norm_eps", _QK_NORM_EPS) != _QK_NORM_EPS:
        raise ModelError(f"{where} has layer_norm_eps {known['layer_norm_eps']!r} with qk_normalization; expected 1e-6")
    return InternVLVisionConfig(**{ours: known[theirs] for theirs, ours in _VISION.items() if theirs in known})


def _text(decoder: Decoder, told: Mapping) -> PreTrainedConfig:
    fields = {name: told[name] for name in (*COMMON, *decoder.fields) if told.get(name) is not None}
    # None means no window, where a class's default is one.
    if "sliding_window" in decoder.fields and "sliding_window" in told:
        fields["sliding_window"] = told["sliding_window"]
    if "original_max_position_embeddings" in fields and isinstance(fields.get("rope_scaling"), dict):
        length = fields["original_max_position_embeddings"]
        fields["rope_scaling"] = {**fields["rope_scaling"], "original_max_position_embeddings": length}
    return decoder.config(**fields, tie_word_embeddings=False)
