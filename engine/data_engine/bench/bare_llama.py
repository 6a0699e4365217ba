"""A LLaMA decoder of random weights with what running a prompt asks of a model, and nothing else: no tower, no head.

For what depends on the shapes of a decoder alone, at the size of a real one, without a checkpoint.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModel, LlamaConfig

from data_engine.models.layers import attention
from data_engine.models.layers.backends import choose_backends
from data_engine.models.layers.for_device import fit
from data_engine.models.native.model import EmbeddingDecoder

# The decoder of LLaVA-1.5-7B but for its vocabulary; and one for the CPU, to see that what uses it runs. Widths are
# multiples of 32, or a CPU with AVX512 would compute the last numbers of an odd number of rows by another exp.
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
TINY_LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True, eq=False)
class EmbeddedPrompt:
    """A prompt whose embeddings [P, D] are given."""

    embeds_PD: Tensor

    @property
    def length(self) -> int:
        return len(self.embeds_PD)

    def embeds(self, model: "BareLlama") -> Tensor:
        return self.embeds_PD


class BareLlama(EmbeddingDecoder):
    """See models.base.VisionLanguageModel for what it has of one. Its layers are as `load_model` leaves them."""

    num_ids = 1024

    def __init__(self, sizes: dict[str, int], device: torch.device, dtype: torch.dtype) -> None:
        choose_backends()
        config = LlamaConfig(vocab_size=self.num_ids, attn_implementation=attention.NAME, **sizes)
        # Made in its dtype: a cast would take the memory of fp32 weights first, and round rotary frequencies too.
        with torch.device(device):
            decoder = AutoModel.from_config(config, dtype=dtype).eval()
        fit(decoder, device)
        super().__init__(decoder, device, dtype)

    def embed_tokens(self, token_ids_T: Tensor) -> Tensor:
        return self.decoder.embed_tokens(token_ids_T)

    def prompt(self, length: int) -> EmbeddedPrompt:
        """A made-up prompt of so many tokens."""
        width = self.decoder.config.hidden_size
        return EmbeddedPrompt(torch.randn(length, width, device=self.device).to(self.dtype))
