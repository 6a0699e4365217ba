"""Layers of LLaMA for tests of operations that run a kernel."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

OPERATIONS = ("rms_norm", "apply_rotary", "act_and_mul")


def llama(**sizes) -> LlamaModel:
    """Two layers, whose norms have drawn weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"vocab_size": 16, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
           "num_attention_heads": 4, "num_key_value_heads": 2} | sizes
    )  # fmt: skip
    decoder = LlamaModel(config).eval()
    for module in decoder.modules():
        if isinstance(module, LlamaRMSNorm):
            nn.init.normal_(module.weight)
    return decoder


def run(decoder: LlamaModel) -> Tensor:
    with torch.inference_mode():
        return decoder(input_ids=torch.arange(14).view(2, 7)).last_hidden_state
