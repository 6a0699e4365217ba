"""A model's own forward of a prompt, what it hands its decoder on the way, and the tensors that it runs on.

Shapes: P prompt tokens, V vocabulary, D width.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import PreTrainedModel

from data_engine.errors import BadRow, LostRankError, UserError
from data_engine.models.auto.forward.mirrored import Known, is_known, mirrored
from data_engine.models.auto.forward.positions import host_positions
from data_engine.models.auto.forward.processed import ProcessedPrompt
from data_engine.models.auto.forward.sending import Sending
from data_engine.models.auto.parts import layers
from data_engine.models.checkpoints.json_files import reason
from data_engine.models.device import sent
from data_engine.models.layers.answer_cache import CACHE
from data_engine.models.layers.attention import DoesNotFit
from data_engine.models.layers.noting import forget
from data_engine.models.memory_errors import is_out_of_memory

log = logging.getLogger(__name__)
Made = TypeVar("Made")


class OwnForward:
    """Runs one prompt at a time."""

    takes_mirrored = True
    """the model's code runs on tensors that the host has a copy of (mirrored.py)"""

    def __init__(self, model: PreTrainedModel, decoder: nn.Module, vision: nn.Module | None) -> None:
        self._model, self._positions_of, self._sending = model, host_positions(model), Sending()
        # Of the last prompt.
        self._on_host: Tensor | None = None
        self._positions: Tensor | None = None
        self._hidden_D: Tensor | None = None
        decoder.register_forward_pre_hook(self._note_positions, with_kwargs=True)
        decoder.register_forward_hook(self._note_hidden)
        # What the decoder's layers send is not worth the mode, and compiled ones would be traced with it.
        self._sending.leave(decoder, needs=False)
        within = set(decoder.modules())
        for part in filter(None, (vision, *layers(model))):
            if part not in within:
                self._sending.leave(part)

    def run(self, prompt: ProcessedPrompt, inputs: Mapping[str, Tensor], cache: Cache, sends: bool) -> ModelOutput:
        """With the logits behind the prompt alone: those of all P tokens are too many.

        `inputs`: the prompt's, on the device. `sends`: what the model's code sends may be mirrored as well.
        """
        self._on_host, self._positions, self._hidden_D = self._positions_of(prompt.inputs), None, None
        device = inputs["input_ids"].device
        with contextlib.ExitStack() as stack:
            if self.takes_mirrored:
                known = Known(device)
                inputs = mirrored(inputs, prompt.inputs, known)
                if sends:
                    stack.enter_context(self._sending.of(known))
            given = self._model.prepare_inputs_for_generation(
                **inputs, **{CACHE: cache}, is_first_iteration=True, use_cache=True
            )
            if self._on_host is not None:
                given["position_ids"] = sent(self._on_host, device)
            if prompt.features is not None:
                given["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=prompt.features)}
            return self._model(**given | {"logits_to_keep": 1})

    def mirrored_or_plain(self, run: Callable[[], Made]) -> Made:
        """What `run` makes of a forward of a prompt. Where that fails on mirrored tensors, once more on plain ones.

        If it runs on these, the model gets no others from then on; if not, what it raises is raised.
        """
        if not self.takes_mirrored:
            return run()
        try:
            return run()
        except (UserError, BadRow, LostRankError, DoesNotFit):
            raise
        # Whatever a model raises that is handed what it does not know.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            why = f"{type(error).__name__}: {reason(error)}"
        forget()
        self.takes_mirrored = False
        try:
            made = run()
        except BaseException:
            self.takes_mirrored = True
            raise
        log.warning("the host waits for the device in each prompt: the model runs on plain tensors alone (%s)", why)
        return made

    @property
    def hidden_D(self) -> Tensor:
        """Last hidden state of the prompt's last token."""
        if self._hidden_D is None:
            raise DoesNotFit("its text decoder is not called as a module")
        return self._hidden_D

    def next_position(self, prompt: ProcessedPrompt) -> int:
        """Where answers go on, once the forward of a prompt has reached the decoder."""
        positions = self._on_host if self._on_host is not None else self._positions
        if positions is None:
            return prompt.length
        # What the device has to tell now, the host knows of the next prompt.
        self._sending.knows_counted |= positions is not self._on_host and not is_known(positions)
        # The largest of all axes: an image takes fewer positions than tokens where they have height and width.
        return int(positions.max()) + 1

    def _note_positions(self, module: nn.Module, args: tuple, options: dict) -> None:
        self._positions = options.get("position_ids")

    def _note_hidden(self, module: nn.Module, args: tuple, out: object) -> None:
        # A copy, which does not keep the others alive.
        self._hidden_D = out.last_hidden_state[0, -1].clone()
