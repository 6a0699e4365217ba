"""A model's own decoding, a step at a time: the plain path samples by it, and doubts about the shared one are settled.

Shapes: K rows, T tokens of an answer, V vocabulary.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import PreTrainedModel

from data_engine.models.layers.answer_cache import CACHE

_NONE = inspect.Parameter.empty


class OwnDecoding:
    """Rows of answers as the model's own `generate` computes them: the prompt is run once, its cache then copied.

    `generate` itself expands the inputs of a prompt, where several crops of an image change places.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Tensor],
        num_rows: int,
        own_attention: Callable[[], AbstractContextManager],
    ) -> None:
        """`own_attention`: see parts.Attention.own."""
        self._model, self._num_rows, self._own_attention = model, num_rows, own_attention
        self._ids = inputs.pop("input_ids")
        self._cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self._options = inputs | {CACHE: self._cache, "use_cache": True, "logits_to_keep": 1}
        parameters = inspect.signature(model.forward).parameters
        self._required = [name for name in self._options if name in parameters and parameters[name].default is _NONE]
        # As `generate` begins: models with several axes of positions go on counting from these.
        if "position_ids" in parameters:
            self._options["position_ids"] = model._prepare_position_ids_for_generation(self._ids, self._options)

    @torch.inference_mode()
    def first(self) -> Tensor:
        logits = self._step(is_first_iteration=True)
        if self._num_rows > 1:
            # As a beam search that takes its first row again and again: each layer knows what it holds, such as the
            # keys of an index.
            self._cache.reorder_cache(torch.zeros(self._num_rows, dtype=torch.long, device=self._ids.device))
            for name, value in self._options.items():
                if isinstance(value, Tensor) and (axis := self._axis_of_rows(value)) is not None:
                    self._options[name] = value.repeat_interleave(self._num_rows, axis)
            self._ids = self._repeated(self._ids)
        return self._repeated(logits)

    @torch.inference_mode()
    def next(self, tokens_K: Tensor) -> Tensor:
        self._ids = torch.cat([self._ids, tokens_K[:, None]], 1)
        return self._step(next_sequence_length=1)

    def _repeated(self, rows: Tensor) -> Tensor:
        return rows.repeat_interleave(self._num_rows, 0)

    def _axis_of_rows(self, value: Tensor) -> int | None:
        """The axis that counts rows, of what stands beside each token: it comes before that of the tokens.

        Pixels have none: they are not read again.
        """
        tokens = self._ids.shape[1]
        for axis in range(value.ndim - 1):
            if (
                value.shape[axis] == 1
                and value.shape[axis + 1] in (tokens, tokens + 1)
                and not value.is_floating_point()
            ):
                return axis
        return None

    def _step(self, **how: object) -> Tensor:
        with self._own_attention():
            given = self._model.prepare_inputs_for_generation(self._ids, **how, **self._options)
            # BLIP-2's forward asks for pixels in each step, which are left out behind a prompt: its `generate` calls
            # its text model alone.
            given = {name: self._options[name] for name in self._required} | given
            out = self._model(**given, return_dict=True)
        self._options = self._model._update_model_kwargs_for_generation(out, self._options, is_encoder_decoder=False)
        return out.logits[:, -1].float()


def whole_rows(model: PreTrainedModel, inputs: dict[str, Tensor], answers_KT: Tensor) -> dict[str, object]:
    """What `model` is called with for one forward of whole rows: K prompts, `inputs`, each with an answer of T tokens.

    What stands beside each token, such as masks and types, grows as `generate` has it grow, token by token.
    """
    asked = inputs["input_ids"]
    ids = torch.cat([asked, answers_KT], 1)
    whole = {name: value for name, value in inputs.items() if name != "input_ids"}
    for _ in range(answers_KT.shape[1]):
        whole = model._update_model_kwargs_for_generation({}, whole, is_encoder_decoder=False)
    for name, value in whole.items():
        # What has no rule of its own to grow by, such as the types by which Ernie chooses experts.
        if isinstance(value, Tensor) and value.shape == asked.shape:
            whole[name] = torch.cat([value, value[:, -1:].expand(answers_KT.shape)], 1)
    return model.prepare_inputs_for_generation(input_ids=ids, **whole, is_first_iteration=True, use_cache=False)
