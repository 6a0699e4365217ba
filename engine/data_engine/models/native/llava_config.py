"""config.json of a LLaVA checkpoint, in the original layout and in transformers', and where its CLIP tower is."""

from dataclasses import dataclass
from pathlib import Path

from transformers import CLIPVisionConfig, LlamaConfig

from data_engine.models.checkpoints.adapter_folder import base_folder
from data_engine.models.checkpoints.json_files import ModelError, read_json
from data_engine.models.checkpoints.model_config import check_counts, described
from data_engine.models.checkpoints.places import fetch, resolve
from data_engine.models.native.decoder import decoder_config
from data_engine.models.registry import model_types
from data_engine.store.absent import is_file

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

    @property
    def image_tokens(self) -> int:
        """Tokens of a picture in a prompt."""
        grid = self.vision.image_size // self.vision.patch_size
        return grid**2 if self.drop_cls else grid**2 + 1

    @property
    def unused_layers(self) -> str:
        """The numbers of the tower's other layers, as an alternative of a regular expression."""
        return "|".join(map(str, range(self.vision_layers, self.vision.num_hidden_layers))) or "none"


def read_config(folder: Path, carries_tower: bool) -> LlavaConfig:
    """config.json of either layout. Raises ModelError naming the field that is missing or not supported."""
    raw = read_json(folder / "config.json")
    where = folder / "config.json"
    if "text_config" in raw or "vision_config" in raw:
        return _transformers_config(raw, where)
    _expect(raw, where, "mm_projector_type", "mlp2x_gelu")
    _expect(raw, where, "mm_use_im_start_end", False)
    _expect(raw, where, "mm_use_im_patch_token", False)
    _refuse_tiles(raw, where)
    tower = raw.get("mm_vision_tower")
    if not isinstance(tower, str) or not tower:
        raise ModelError(f"{where} has no mm_vision_tower: the name or folder of the CLIP tower")
    tower_folder, vision = _find_tower(folder, tower, carries_tower)
    return LlavaConfig(
        text=llama_config(raw, where),
        vision=vision,
        vision_layers=_layers(vision, raw.get("mm_vision_select_layer", -2), where),
        drop_cls=_select_patches(raw.get("mm_vision_select_feature", "patch"), where),
        tower_folder=None if carries_tower else tower_folder,
    )


def _transformers_config(raw: dict, where: Path) -> LlavaConfig:
    for name in ("text_config", "vision_config"):
        if not isinstance(raw.get(name), dict):
            raise ModelError(f"{where} has no {name}")
    _expect(raw, where, "projector_hidden_act", "gelu")
    vision = _clip_config(raw["vision_config"], where)
    return LlavaConfig(
        # transformers stores tie_word_embeddings at the top level, which overrides the default of the text part.
        text=llama_config(raw["text_config"] | {"tie_word_embeddings": raw.get("tie_word_embeddings", False)}, where),
        vision=vision,
        vision_layers=_layers(vision, raw.get("vision_feature_layer", -2), where),
        drop_cls=_select_patches(raw.get("vision_feature_select_strategy", "default"), where),
        tower_folder=None,
    )


def _expect(raw: dict, where: Path, field: str, value: object) -> None:
    if raw.get(field, value) != value:
        raise ModelError(f"{where} has {field} {raw[field]!r}; this family supports {value!r}")


def _refuse_tiles(raw: dict, where: Path) -> None:
    """Raise ModelError for LLaVA-1.6 in its own layout, which cuts pictures into tiles where LLaVA-1.5 pads them."""
    ratio = raw.get("image_aspect_ratio")
    if isinstance(ratio, str) and ratio.startswith("anyres"):
        raise ModelError(
            f"{where} has image_aspect_ratio {ratio!r}: LLaVA-1.6 in its own layout, which is not read; pass the same "
            "model in transformers' layout, such as llava-hf/llava-v1.6-vicuna-7b-hf"
        )


def llama_config(raw: dict, where: Path) -> LlamaConfig:
    """The configuration of the decoder, from the part of config.json that describes it. Raises ModelError."""
    return decoder_config(LlamaConfig, raw, where, types=tuple(model_types()))


def _clip_config(raw: dict, where: Path) -> CLIPVisionConfig:
    """The configuration of a CLIP tower. Raises ModelError where it is broken, or that of another kind of tower."""
    kind = raw.get("model_type", "clip_vision_model")
    if kind not in ("clip_vision_model", "clip"):
        raise ModelError(f"{where} has a vision tower of type {kind!r}; this family supports clip_vision_model")
    check_counts(raw, where, ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"))
    # The table of positions is the one thing that is made whole before a weight is read.
    check_counts(raw, where, ("image_size", "patch_size"), most=4096)
    vision = described(where, lambda: CLIPVisionConfig(**raw))
    if vision.patch_size > vision.image_size:
        raise ModelError(f"{where} has image_size {vision.image_size}, less than one patch of {vision.patch_size}")
    return vision


def _layers(vision: CLIPVisionConfig, select: int, where: Path) -> int:
    """Layers up to the selected hidden state. There is one state more than layers: -2 is that before the last layer."""
    if type(select) is not int:
        raise ModelError(f"{where} selects vision layer {select!r}; expected one number, such as -2")
    layers = vision.num_hidden_layers + 1 + select if select < 0 else select
    if not 0 <= layers <= vision.num_hidden_layers:
        raise ModelError(f"{where} selects vision layer {select}, the tower has {vision.num_hidden_layers} layers")
    return layers


def _select_patches(feature: str, where: Path) -> bool:
    known = {"patch": True, "default": True, "cls_patch": False, "full": False}
    if not isinstance(feature, str) or feature not in known:
        raise ModelError(f"{where} selects vision feature {feature!r}; known: {', '.join(known)}")
    return known[feature]


def _find_tower(folder: Path, tower: str, carries_tower: bool) -> tuple[Path | None, CLIPVisionConfig]:
    """The CLIP folder: in the checkpoint, beside it, an absolute path, or a hub id; never in the working directory."""
    base = Path(tower).name
    folder = base_folder(folder)
    places = [folder / tower, folder / base, folder.parent / tower, folder.parent / base]
    try:
        places = [place for place in places if place.resolve() not in (folder.resolve(), folder.parent.resolve())]
        found = next((place for place in places if is_file(place / "config.json")), None)
    # A name with a zero byte, or too long for a file.
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} has mm_vision_tower {tower[:100]!r}: {error}") from error
    if found is None and carries_tower and base in KNOWN_TOWERS:
        return None, KNOWN_TOWERS[base]
    if found is None:
        try:
            found = resolve(tower) if Path(tower).is_absolute() else fetch(tower)
        except ModelError as error:
            looked = ", ".join(map(str, places))
            raise ModelError(f"no CLIP tower {tower!r}: looked in {looked}, and {error}") from error
    raw = read_json(found / "config.json")
    vision = raw.get("vision_config", raw)
    if not isinstance(vision, dict):
        raise ModelError(f"{found / 'config.json'} has vision_config {vision!r}; expected an object")
    return found, _clip_config(vision, found / "config.json")
