"""The tiny LLaVA: a CLIP tower, a projector and a LLaMA, written to disk in the layout of the published LLaVA-1.5.

In: pictures, prompt and answer ids. Out: log-probs, sampled answers, checkpoints. For training; the engine has its own.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, LlamaConfig, LlamaForCausalLM

from data_engine.demo.tokenizer import BOS, EOS, PAD, VOCAB_SIZE, write_tokenizer_files
from data_engine.demo.world import SIZE
from data_engine.models.layers.answer_cache import CACHE

TOWER_NAME = "openai/clip-tiny-56"
WIDTH = 128
LLAMA = {
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    # About 1 / sqrt(WIDTH): the usual 0.02 is meant for wide models, and here the image would hardly get through.
    "initializer_range": 0.08,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
CLIP = {
    "hidden_size": WIDTH,
    "image_size": SIZE,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 4,
    # As in LLaVA the last layer is there but not used: the features are hidden_states[-2].
    "num_hidden_layers": 4,
    "patch_size": 14,
    "projection_dim": 16,
}
# Patches a side.
SIDE = SIZE // CLIP["patch_size"]
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def to_pixel_values(pixels: Tensor) -> Tensor:
    """CLIP's normalisation of uint8 pictures [B, H, W, 3], as float32 [B, 3, H, W]."""
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


class TinyLlava(nn.Module):
    """CLIP tower, two-layer projector and LLaMA, all small. Weights depend on torch's random state."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(CLIPVisionConfig(**CLIP))
        # CLIP starts positions 25 times smaller than patches, and would be long in finding out where it looks.
        for name, weight in self.tower.named_parameters():
            if name.endswith("position_embedding.weight"):
                nn.init.normal_(weight, std=0.5)
        self.projector = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.llama = LlamaForCausalLM(LlamaConfig(**LLAMA))

    def features(self, pixel_values: Tensor) -> Tensor:
        """Patch features before the projector [B, SIDE^2, WIDTH]."""
        return self.tower(pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:]

    def embed(self, pixel_values: Tensor, before_ids: Tensor, after_ids: Tensor) -> Tensor:
        """The decoder's input: before_ids [S], the image, after_ids [B, T], as [B, S + SIDE^2 + T, WIDTH]."""
        image = self.projector(self.features(pixel_values))
        embed_tokens = self.llama.get_input_embeddings()
        before = embed_tokens(before_ids).expand(len(image), -1, -1)
        return torch.cat([before, image, embed_tokens(after_ids)], dim=1)

    def token_logps(self, pixel_values: Tensor, before_ids: Tensor, after_ids: Tensor, labels: Tensor) -> Tensor:
        """Log-prob of each label [B, T], 0 where the label is -100; labels [B, T] stand at the tokens themselves."""
        # The text before the image is the same for all: computed once, its keys and values are shared.
        cache = DynamicCache(config=self.llama.config)
        embed_tokens = self.llama.get_input_embeddings()
        self.llama.model(inputs_embeds=embed_tokens(before_ids)[None], **{CACHE: cache}, use_cache=True)
        cache.batch_repeat_interleave(len(after_ids))
        rest = torch.cat([self.projector(self.features(pixel_values)), embed_tokens(after_ids)], dim=1)
        hidden = self.llama.model(inputs_embeds=rest, **{CACHE: cache}, use_cache=True).last_hidden_state
        # The state before a token predicts it.
        logits = self.llama.lm_head(hidden[:, -after_ids.shape[1] - 1 : -1])
        logps = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return logps * (labels >= 0)

    @torch.inference_mode()
    def sample(self, pixel_values: Tensor, before_ids: Tensor, after_ids: Tensor, num_answers: int) -> Tensor:
        """Answers at temperature 0.7, top_k 50: ids [B * num_answers, T], PAD at the end; after_ids have no padding."""
        return self.llama.generate(
            inputs_embeds=self.embed(pixel_values, before_ids, after_ids),
            do_sample=True,
            temperature=0.7,
            top_k=50,
            top_p=1.0,
            max_new_tokens=40,
            num_return_sequences=num_answers,
        )


def published_weights(model: TinyLlava) -> dict[str, Tensor]:
    """The weights in fp16 under the names of the published LLaVA checkpoints, CLIP's own included."""
    weights = dict(model.llama.state_dict())
    weights |= {f"model.mm_projector.{name}": tensor for name, tensor in model.projector.state_dict().items()}
    for name, tensor in model.tower.state_dict().items():
        # transformers 5 drops or keeps this level, depending on the version; published checkpoints have it.
        name = name.removeprefix("vision_model.")
        weights[f"model.vision_tower.vision_tower.vision_model.{name}"] = tensor
    return {
        name: tensor.detach().half().contiguous().clone()
        for name, tensor in sorted(weights.items())
        if not name.endswith(("position_ids", "inv_freq"))
    }


def save_checkpoint(model: TinyLlava, folder: Path, tokenizer_model: bytes, model_type: str) -> None:
    """Write the published layout: config, tokenizer, safetensors, and the tower's configuration at TOWER_NAME."""
    tower = folder / TOWER_NAME
    tower.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(save(published_weights(model), metadata={"format": "pt"}))
    write_tokenizer_files(folder, tokenizer_model)
    _write_json(folder / "config.json", llava_config(model_type))
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    clip = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": CLIP["projection_dim"]}
    _write_json(tower / "config.json", {**clip, "vision_config": {**CLIP, "model_type": "clip_vision_model"}})
    _write_json(tower / "preprocessor_config.json", preprocessor_config())


def llava_config(model_type: str) -> dict:
    """config.json of an original-layout LLaVA: LLaMA's fields and the mm_ ones."""
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "image_aspect_ratio": "pad",
        "mm_hidden_size": WIDTH,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": TOWER_NAME,
        "model_type": model_type,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tokenizer_model_max_length": 2048,
        "torch_dtype": "float16",
        "use_cache": True,
        "use_mm_proj": True,
        **LLAMA,
    }


def preprocessor_config() -> dict:
    """CLIP's image processor, with the old integer sizes of the published files."""
    steps = dict.fromkeys(("do_center_crop", "do_normalize", "do_resize"), True)
    values = {"image_mean": PIXEL_MEAN, "image_std": PIXEL_STD, "resample": 3}
    return {**steps, **values, "crop_size": SIZE, "size": SIZE, "feature_extractor_type": "CLIPFeatureExtractor"}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
