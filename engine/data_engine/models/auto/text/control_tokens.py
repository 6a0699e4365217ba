"""The tokens that make a prompt's format: what no text may bring, and what no answer may be sampled with."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

# Names under which processors, tokenizers and configurations keep tokens of pictures, films and sounds.
_MEDIA = re.compile(r"(image|img|video|audio|vision|visual|boi|eoi|boa|eoa|bov|eov|slice)")
_TOKEN_ID = re.compile(r"_token_(id|ids|index)$|^(image|video|audio)_ids$")
_TOKEN = re.compile(r"_token$")


class ControlTokens:
    """Tokens of a prompt's format: special ones, those that the template writes, and placeholders of pictures.

    Other added tokens are words of the vocabulary, such as Gemma's runs of line feeds, and belong to any text.
    """

    def __init__(self, processor: ProcessorMixin, template: str) -> None:
        tokenizer = processor.tokenizer
        listed = set(getattr(tokenizer, "chat_control_tokens", None) or ())
        self.ids: dict[int, str] = {
            number: token.content
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special or token.content in listed or _is_written(token.content, template)
        }
        placeholders = {text for name, text in _texts(vars(processor)) if _MEDIA.search(name)}
        known = tokenizer.get_vocab()
        self.ids |= {known[text]: text for text in placeholders if text in known}
        self.texts = tuple(sorted({*self.ids.values(), *placeholders}, key=lambda text: (-len(text), text)))
        """the longest first"""

    def first_in(self, text: str) -> str | None:
        """One that the text contains, the longest of them."""
        return next((token for token in self.texts if token in text), None)

    def counted(self, ids: Iterable[int]) -> Counter[str]:
        """How often each stands among the ids."""
        return Counter(self.ids[number] for number in ids if number in self.ids)


def _is_written(token: str, template: str) -> bool:
    return len(token) > 2 and not token.isspace() and token in template


def _texts(attributes: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in attributes.items():
        text = getattr(value, "content", value)
        if _TOKEN.search(name) and isinstance(text, str) and text:
            yield name, text


def media_ids(processor: ProcessorMixin, config: PretrainedConfig) -> tuple[int, ...]:
    """Ids of pictures, films and sounds, and of what stands around them: no answer contains one.

    Some lie behind the vocabulary, where a model has embeddings and no logits; a configuration may name ids that its
    model does not have at all, by its class's defaults for one.
    """
    tokenizer = processor.tokenizer
    known = tokenizer.get_vocab()
    # One by one: the two may have different tokens of one name.
    named = (*_texts(vars(processor)), *_texts(tokenizer.special_tokens_map))
    found = {known[text] for name, text in named if _MEDIA.search(name) and text in known}
    for name, value in (*vars(processor).items(), *vars(config).items()):
        if _MEDIA.search(name) and _TOKEN_ID.search(name.lstrip("_")):
            found |= set(_ids(value))
    for part in map(vars(config).get, ("vision_config", "audio_config")):
        # Those of Gemma 3n's vocabularies for pictures and sounds, which its text decoder alone embeds otherwise.
        if start := getattr(part, "vocab_offset", None):
            found |= set(range(start, start + part.vocab_size))
    return tuple(sorted(found))


def _ids(value: object) -> list[int]:
    """A number, or a list of them, as ids."""
    numbers = value if isinstance(value, list | tuple) else [value]
    return [number for number in numbers if type(number) is int and number >= 0]


def end_ids(tokenizer: PreTrainedTokenizerBase, generation: Mapping[str, object]) -> tuple[int, ...]:
    """What ends an answer by generation_config.json and by the tokenizer."""
    return tuple(dict.fromkeys([*_ids(generation.get("eos_token_id")), *_ids(tokenizer.eos_token_id)]))


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of every token, the added ones too, with its id."""
    tokens = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    told = "\n".join(f"{number} {token}" for number, token in tokens)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()
