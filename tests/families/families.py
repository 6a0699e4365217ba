"""The families that the suite runs, as tiny random checkpoints: what each is, and what it needs. Imports no torch."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import pytest

VISION, WORDS, TIMM = "torchvision", "num2words", "timm"


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint."""

    code: str
    """module:function, which returns a model and its processor"""
    kind: str
    """what is peculiar to it, for the reader of the table"""
    end: str | None = None
    """special token that its template writes behind an answer, where that is not the tokenizer's EOS"""
    needs: tuple[str, ...] = ()
    """packages without which its processor or its tower cannot be made"""
    quick: bool = False
    """part of `make test`"""
    video: str | None = None
    """the video processor that a published checkpoint names; none is made here without torchvision"""
    without_image: bool = True
    """takes a prompt without an image"""
    one_image: bool = False
    """takes no prompt with several images"""
    hybrid: bool = False
    """some layers carry a state from token to token, instead of keys and values"""
    fast: bool = True
    """goes by the shared prefix"""

    @property
    def counts(self) -> bool:
        """The position behind a prompt is the number of its tokens."""
        return not self.kind.startswith((MROPE, "bidirectional prompt"))

    def takes(self, num_images: int) -> bool:
        """Whether it takes a prompt with that many pictures."""
        return bool(num_images or self.without_image) and not (num_images > 1 and self.one_image)

    def build(self):
        """The model and its processor."""
        module, _, function = self.code.partition(":")
        return getattr(import_module(module), function)()

    def missing(self) -> str | None:
        """Which of its packages are not there."""
        return missing(*self.needs)


def missing(*packages: str) -> str | None:
    """Those that cannot be imported, and how to get them."""
    absent = [name for name in packages if find_spec(name) is None]
    if not absent:
        return None
    it = "them" if len(absent) > 1 else "it"
    return f"{' and '.join(absent)}, which cannot be imported: `make test-families` fetches {it}"


IM_END, MROPE = "<|im_end|>", "M-RoPE"
ANY_SIZE = f"{MROPE}, pictures of any size"
QWEN, QWEN_3 = "Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor"
GLM, GLM_46 = "Glm4vVideoProcessor", "Glm46VVideoProcessor"

FAMILIES = {
    "llava": Family("tiny_causal:llava", "causal", quick=True),
    "llava_next": Family("tiny_causal:llava_next", "causal, several crops"),
    "llava_onevision": Family(
        "tiny_causal:llava_onevision", "causal, several crops", IM_END, quick=True, video="LlavaOnevisionVideoProcessor"
    ),
    "internvl": Family("tiny_causal:internvl", "causal, several crops", quick=True, video="InternVLVideoProcessor"),
    "deepseek_vl": Family("tiny_causal:deepseek_vl", "causal"),
    "janus": Family("tiny_causal:janus", "causal"),
    "vipllava": Family("tiny_towers:vipllava", "causal"),
    "deepseek_vl_hybrid": Family("tiny_towers:deepseek_vl_hybrid", "causal, two towers"),
    "aria": Family("tiny_towers:aria", "causal, experts"),
    "granite4_vision": Family("tiny_towers:granite4_vision", "causal, several crops, DeepStack in every layer"),
    "video_llama_3": Family(
        "tiny_towers:video_llama_3", "causal, pictures of any size", video="VideoLlama3VideoProcessor"
    ),
    "molmo2": Family("tiny_towers:molmo2", "bidirectional pictures, several crops", needs=(VISION,)),
    "perception_lm": Family(
        "tiny_towers:perception_lm", "causal, several crops", "<|eot_id|>", needs=(VISION, TIMM)
    ),
    "fast_vlm": Family("tiny_towers:fast_vlm", "causal, convolutional tower", needs=(VISION, TIMM)),
    "ovis2": Family("tiny_causal:ovis2", "visual vocabulary, several crops"),
    "idefics2": Family("tiny_towers:idefics2", "causal, several crops", "<end_of_utterance>"),
    "idefics3": Family("tiny_slices:idefics3", "causal, several crops", "<end_of_utterance>"),
    "smolvlm": Family("tiny_slices:smolvlm", "causal, several crops", "<end_of_utterance>", (VISION, WORDS)),
    "mistral3": Family("tiny_slices:mistral3", "causal, pictures of any size", needs=(VISION,)),
    "minicpmv4_6": Family("tiny_slices:minicpmv4_6", "slices", needs=(VISION,)),
    "kimi_k25": Family(
        "tiny_slices:kimi_k25", "latent attention, experts", IM_END, (VISION,), video="Kimi_K25VideoProcessor"
    ),
    "lfm2_vl": Family("tiny_slices:lfm2_vl", "short convolutions, slices", needs=(VISION,), hybrid=True),
    "lfm3_vl": Family(
        "tiny_slices:lfm3_vl", "short convolutions, windows, pictures of any size", video=QWEN_3, hybrid=True
    ),
    "qwen2_vl": Family("tiny_mrope:qwen2_vl", ANY_SIZE, video=QWEN),
    "qwen2_5_vl": Family("tiny_mrope:qwen2_5_vl", ANY_SIZE, quick=True, video=QWEN),
    "qwen3_vl": Family("tiny_mrope:qwen3_vl", f"{ANY_SIZE}, DeepStack", video=QWEN_3),
    "qwen3_vl_moe": Family("tiny_mrope:qwen3_vl_moe", f"{ANY_SIZE}, DeepStack, experts", video=QWEN_3),
    "qwen3_5": Family("tiny_mrope:qwen3_5", f"{ANY_SIZE}, gated delta net", quick=True, video=QWEN_3, hybrid=True),
    "qwen3_5_moe": Family(
        "tiny_mrope:qwen3_5_moe", f"{ANY_SIZE}, gated delta net, experts", video=QWEN_3, hybrid=True
    ),
    "glm4v": Family("tiny_mrope:glm4v", f"{ANY_SIZE}, partial rotary", video=GLM),
    "glm4v_moe": Family("tiny_mrope:glm4v_moe", f"{ANY_SIZE}, partial rotary, experts", video=GLM),
    "minicpmv4_7": Family(
        "tiny_mrope:minicpmv4_7", f"{MROPE}, slices, gated delta net", needs=(VISION,), hybrid=True
    ),
    "glm46v": Family("tiny_mrope:glm46v", f"{ANY_SIZE}, partial rotary", video=GLM_46),
    "glm_ocr": Family("tiny_mrope:glm_ocr", f"{ANY_SIZE}, partial rotary", video=GLM_46),
    "ernie4_5_vl_moe": Family(
        "tiny_mrope_more:ernie4_5_vl_moe", f"{ANY_SIZE}, experts of its own for pictures", needs=(VISION,)
    ),
    "hunyuan_vl": Family(
        "tiny_mrope_more:hunyuan_vl", f"counted positions beside {ANY_SIZE}", "<｜hy_Assistant｜>"
    ),
    "qwen2_5_omni_thinker": Family(
        "tiny_mrope_more:qwen2_5_omni_thinker", f"{ANY_SIZE}, a tower for sound beside", needs=(VISION,)
    ),
    "gemma3": Family("tiny_windows:gemma3", "windows, bidirectional pictures", "<end_of_turn>", quick=True),
    "gemma4": Family(
        "tiny_windows:gemma4", "windows, bidirectional pictures, shared keys and values, two head widths, per-layer "
        "embeddings, softcap", "<end_of_turn>", (VISION,),
    ),
    "gemma3n": Family(
        "tiny_windows:gemma3n", "windows, shared keys and values, per-layer embeddings, vocabularies of pictures and "
        "of sounds, softcap", "<end_of_turn>", (VISION, TIMM),
    ),
    "paligemma": Family("tiny_windows:paligemma", "bidirectional prompt, positions from 1", without_image=False),
    "paligemma2": Family(
        "tiny_windows:paligemma2", "bidirectional prompt, windows, softcaps in attention and head", without_image=False
    ),
    "aya_vision": Family("tiny_windows:aya_vision", "windows, layers without RoPE", "<|END_TURN|>"),
    "cohere2_vision": Family(
        "tiny_windows:cohere2_vision", "windows, layers without RoPE", "<|END_TURN|>", (VISION,)
    ),
    "exaone4_5": Family(
        "tiny_windows:exaone4_5", "windows, layers without RoPE, pictures of any size", video=QWEN
    ),
    "step3p7": Family(
        "tiny_windows:step3p7", "windows, numbers of heads and rotary tables by the kind of layer, experts, several "
        "crops", needs=(VISION,),
    ),
    "llama4": Family("tiny_windows:llama4", "chunks, layers without RoPE, experts", "<|eot|>", (VISION,)),
    "llama4_beyond": Family(
        "tiny_windows:llama4_beyond", "Llama 4 beyond its floor_scale", "<|eot|>", (VISION,), fast=False
    ),
    "mllama": Family("tiny_windows:mllama", "cross-attention, tiles", "<|eot_id|>", without_image=False),
    "mistral4": Family(
        "tiny_mistral:mistral4", "latent attention, experts, queries scaled by their place, pictures of any size",
        needs=(VISION,),
    ),
    "mistral_large4": Family(
        "tiny_mistral:mistral_large4", "latent attention, an index of keys, experts, softcap, pictures of any size",
        needs=(VISION,), fast=False,
    ),
    "hyperclovax_vision_v2": Family(
        "tiny_recent:hyperclovax_vision_v2", "causal, scaled layers and logits, pictures of any size", video=QWEN
    ),
    "nemotron_h_omni": Family(
        "tiny_recent:nemotron_h_omni", "Mamba layers, experts, a tower for sound beside, pictures of any size",
        needs=(VISION,), hybrid=True,
    ),
    "cosmos3_edge": Family("tiny_recent:cosmos3_edge", ANY_SIZE, video="Cosmos3EdgeVideoProcessor"),
    "cohere_compass": Family(
        "tiny_recent:cohere_compass", f"{ANY_SIZE}, windows, layers without RoPE, DeepStack",
        "<|END_OF_TURN_TOKEN|>", video="CohereCompassVideoProcessor",
    ),
    "dots3_note": Family(
        "tiny_dots:dots3_note", "latent attention, windows, an index of keys, experts, pictures of any size",
        "<|endofresponse|>", (VISION,), fast=False,
    ),
    "inkling2": Family(
        "tiny_inkling:inkling2", "a bias by distance, sinks, short convolutions beside keys and values, windows, "
        "experts, softcap", needs=(VISION,), fast=False,
    ),
    "inkling_mm_model": Family(
        "tiny_inkling:inkling_mm_model", "a bias by distance, short convolutions beside keys and values, windows, "
        "experts", needs=(VISION,), fast=False,
    ),
    "cosmos3_omni": Family("tiny_mrope:cosmos3_omni", f"{ANY_SIZE}, DeepStack", video=QWEN_3),
    "qwen3_omni_moe_thinker": Family(
        "tiny_mrope_more:qwen3_omni_moe_thinker", f"{ANY_SIZE}, DeepStack, experts, a tower for sound beside",
        needs=(VISION,),
    ),
    "gemma4_unified": Family(
        "tiny_windows:gemma4_unified", "windows, bidirectional pictures without a tower, two head widths, softcap",
        "<end_of_turn>", (VISION,),
    ),
    "minimax_m3_vl": Family(
        "tiny_indexed:minimax_m3_vl", "blocks of keys chosen by an index, experts, pictures of any size", "[e~[",
        (VISION,), fast=False,
    ),
    "qwen4_exp": Family(
        "tiny_indexed:qwen4_exp", f"{ANY_SIZE}, keys chosen by an index, gated delta net, embeddings by several "
        "tokens, experts", video=QWEN_3, hybrid=True, fast=False,
    ),
    "glmga": Family("tiny_mrope:glmga", f"{ANY_SIZE}, partial rotary", video="GlmgaVideoProcessor"),
    "glm5_next": Family(
        "tiny_indexed:glm5_next", "keys chosen by an index, delta attention, latent attention, experts, pictures of "
        "any size", video="Glm5NextVideoProcessor", hybrid=True, fast=False,
    ),
    "muse_spark": Family(
        "tiny_muse:muse_spark", "windows, layers without RoPE, experts, softcap, pictures of any size, sound beside",
        "<|eot|>", (VISION,),
    ),
    "instructblip": Family(
        "tiny_blip:instructblip", "causal, a Q-Former that reads the question", without_image=False, one_image=True
    ),
    "blip_2": Family(
        "tiny_blip:blip_2", "causal, a Q-Former, learned positions", without_image=False, one_image=True
    ),
    "chameleon": Family("tiny_codebooks:chameleon", "causal, pictures as tokens, which it never says"),
    "emu3": Family("tiny_codebooks:emu3", "causal, pictures of any size as tokens"),
    "paddleocr_vl": Family("tiny_ocr:paddleocr_vl", ANY_SIZE),
    "got_ocr2": Family("tiny_ocr:got_ocr2", "causal", without_image=False),
    "qianfan_ocr": Family("tiny_ocr:qianfan_ocr", "causal, several crops"),
    "lighton_ocr": Family("tiny_ocr:lighton_ocr", "causal, pictures of any size"),
    "granite_docling": Family("tiny_ocr:granite_docling", "causal, several crops, DeepStack"),
    "deepseek_ocr2": Family("tiny_ocr:deepseek_ocr2", "causal, experts, several crops, two towers in a row"),
    "minicpm_ocr": Family("tiny_ocr:minicpm_ocr", "slices, gated delta net", needs=(VISION,), hybrid=True),
    "llava_next_video": Family("tiny_films:llava_next_video", "causal, several crops", needs=(VISION,)),
    "video_llava": Family("tiny_films:video_llava", "causal, a tower for films beside", needs=(VISION,)),
}  # fmt: skip
# Those that the pinned release computes otherwise than a later one (data_engine/models/auto/releases.py).
LATER = {
    "muse_glimmer": Family(
        "tiny_muse:muse_glimmer", "windows, layers without RoPE, softcap, pictures of any size", "<|eot|>", (VISION,)
    ),
}


def named(names):
    """Parameters of a test: what is not part of `make test` is marked."""
    return [pytest.param(name, marks=() if FAMILIES[name].quick else pytest.mark.families) for name in names]
