"""What a model of transformers keeps of an answer, found before its weights are read: its decoder runs on no device."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.cache_utils import DynamicCache

from data_engine.models.answer_cache import is_recurrent, tensors
from data_engine.models.attention import Finding, attending
from data_engine.models.auto.parts import attend_by_hook, find_decoder, layer_kinds
from data_engine.models.base import CacheSizes
from data_engine.models.decoder import cache_values_per_token

# Tokens of the pass. Layers for image states do not run in it, and keep nothing of an answer.
TOKENS = 3


def cache_sizes(folder: Path) -> CacheSizes:
    """Numbers that all layers keep together. Where the decoder cannot run so, those of full attention in all layers."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    text = config.get_text_config(decoder=True)
    try:
        return _measured(config)
    # Whatever a decoder raises on a device without numbers; the run itself says what a model cannot do.
    except Exception:
        return CacheSizes(cache_values_per_token(text), 0)


@torch.inference_mode()
def _measured(config: object) -> CacheSizes:
    with torch.device("meta"):
        # Experts are multiplied together in bf16 alone on this device.
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
        decoder = find_decoder(model)
        attend_by_hook(model, decoder)
        finding = Finding(TOKENS, set(decoder.modules()))
        cache = DynamicCache(config=config.get_text_config(decoder=True))
        ids = torch.zeros(1, TOKENS, dtype=torch.long)
        with attending(finding, finding.layers):
            decoder(input_ids=ids, position_ids=torch.arange(TOKENS)[None], past_key_values=cache, use_cache=True)
    kinds = layer_kinds(finding.noted)
    states = [one for layer in cache.layers if is_recurrent(layer) for one in tensors(layer)]
    return CacheSizes(sum(kind.values_per_token for kind in kinds), sum(one[0].numel() for one in states))
