"""What a family is held against: a stock copy of its checkpoint, run by transformers with its default attention.

Two references that know nothing of each other: a forward of prompt and answer as one sequence, and `generate`.
Shapes: P prompt tokens, T tokens of an answer, V vocabulary.
"""

import functools
import inspect
import re

import torch
from asked import Asked
from torch import Tensor
from transformers import AutoModelForImageTextToText, LogitsProcessorList

# Of config.json: tokens that stand for a picture, a film or a sound, or enclose one.
PLACEHOLDERS = re.compile(r"(image|video|audio|boi|eoi|boa|eoa|vision)(_start|_end)?_token_(id|index)")


class Stock:
    """One checkpoint, untouched."""

    def __init__(self, folder, processor) -> None:
        """`processor`: the one that was saved with it, so that what is loaded from the folder is tested as well."""
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = processor
        # Several tests ask for the same.
        self._score, self._greedy = functools.cache(self._score), functools.cache(self._greedy)

    @property
    def placeholders(self) -> list[int]:
        """Ids that no answer may hold; a config may name one that lies beyond the vocabulary."""
        config = self.model.config.to_dict()
        found = [value for name, value in config.items() if PLACEHOLDERS.fullmatch(name)]
        # Of Gemma 3n, which embeds ids from there on as pictures or sounds.
        if start := config.get("vision_config", {}).get("vocab_offset"):
            found += range(start, config["text_config"]["vocab_size"])
        size = self.model.config.get_text_config(decoder=True).vocab_size
        return sorted({value for value in found if value is not None and value < size})

    def inputs(self, asked: Asked) -> dict[str, Tensor]:
        """The processor's, floats in the model's precision."""
        how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        if type(self.processor).__name__ == "GotOcr2Processor":
            # It refuses the lists of lists that apply_chat_template hands it.
            text = self.processor.apply_chat_template(asked.messages(), add_generation_prompt=True)
            given = self.processor(asked.images(), text, return_tensors="pt")
        else:
            given = self.processor.apply_chat_template(asked.messages(), **how)
        # Cosmos 3's makes none unless it is asked to, and its model does not run without.
        if "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:
            given["mm_token_type_ids"] = torch.tensor(self.processor.create_mm_token_type_ids(given["input_ids"]))
        # PaliGemma's processor makes labels, which the model would compute a loss of.
        return {
            name: value.float() if value.is_floating_point() else value
            for name, value in given.items()
            if name != "labels"
        }

    @torch.no_grad()
    def logits(self, asked: Asked, answer: list[int]) -> Tensor:
        """What each token of the answer is drawn from, fp32 [T, V]: one forward, without a cache."""
        inputs = self.inputs(asked)
        length = inputs["input_ids"].shape[1]
        whole = {name: value for name, value in inputs.items() if name != "input_ids"}
        for _ in answer:
            # A token at a time: several at once would repeat the last few token types instead of the last one.
            whole = self.model._update_model_kwargs_for_generation({}, whole, is_encoder_decoder=False)
        for name, value in whole.items():
            # Ernie's second kind of token types, which no rule makes longer: answers are of the prompt's last one.
            if value.shape == (1, length):
                whole[name] = torch.cat([value, value[:, -1:].repeat(1, len(answer))], 1)
        whole["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
        given = self.model.prepare_inputs_for_generation(**whole, is_first_iteration=True, use_cache=False)
        return self.model(**given).logits[0, length - 1 : -1].float()

    def score(self, asked: Asked, answer: list[int]) -> Tensor:
        """log p of each token of the answer [T]."""
        return self._score(asked, tuple(answer))

    def _score(self, asked: Asked, answer: tuple[int, ...]) -> Tensor:
        return token_logps(self.logits(asked, list(answer)), list(answer))

    def greedy(self, asked: Asked, steps: int, banned: list[int], ends: list[int]) -> tuple[list[int], Tensor]:
        """The greedy answer, and the logits that `generate` drew it from, before any token was banned [T, V]."""
        return self._greedy(asked, steps, tuple(banned), tuple(ends))

    @torch.no_grad()
    def _greedy(self, asked: Asked, steps: int, banned: tuple, ends: tuple) -> tuple[list[int], Tensor]:
        inputs = self.inputs(asked)
        out = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=steps, use_cache=True, num_beams=1, repetition_penalty=1.0,
            eos_token_id=list(ends) or None, pad_token_id=0, suppress_tokens=list(banned) or None, output_logits=True,
            return_dict_in_generate=True, logits_processor=LogitsProcessorList(),
        )  # fmt: skip
        return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), torch.cat(out.logits).float()


def token_logps(logits_TV: Tensor, answer: list[int]) -> Tensor:
    return logits_TV.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
