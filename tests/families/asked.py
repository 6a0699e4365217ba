"""What the suite asks each family: prompts that differ in pictures, their number, and the turns around them."""

import copy
from dataclasses import dataclass

# Wide and high: with multimodal RoPE, in a grid that is one patch high, the last position is the number of tokens, and
# a family that counts instead of continuing would pass.
WIDE, HIGH = (140, 100), (90, 170)


@dataclass(frozen=True, eq=False)
class Asked:
    """Sizes of its pictures, and a question or chat messages with a placeholder for each picture."""

    sizes: tuple[tuple[int, int], ...]
    question: str | list[dict]

    def images(self) -> list:
        from tiny_parts import picture

        return [picture(*size, seed=sum(size)) for size in self.sizes]

    def messages(self) -> list[dict]:
        """In transformers' chat format, the pictures in it."""
        images = iter(self.images())
        if isinstance(self.question, str):
            content = [*({"type": "image", "image": image} for image in images), _text(self.question)]
            return [{"role": "user", "content": content}]
        messages = copy.deepcopy(self.question)
        for part in (part for message in messages for part in message["content"]):
            if part["type"] == "image":
                part["image"] = next(images)
        return messages


def _text(of: str) -> dict:
    return {"type": "text", "text": of}


def _turn(role: str, *parts: str | None) -> dict:
    """A message; None is a picture."""
    return {"role": role, "content": [{"type": "image"} if part is None else _text(part) for part in parts]}


ASKED = {
    "wide": Asked((WIDE,), "What is on the table, and what colour is it?"),
    "high": Asked((HIGH,), "How many?"),
    "two images": Asked((WIDE, HIGH), "Which is brighter?"),
    "images between words": Asked((HIGH, WIDE), [_turn("user", "This: ", None, " or this: ", None, " which one?")]),
    "no image": Asked((), "Tell me of ships."),
    "system and turns": Asked(
        (WIDE,),
        [
            _turn("system", "Be short."),
            _turn("user", None, "What is it?"),
            _turn("assistant", "A dog."),
            _turn("user", "And how many?"),
        ],
    ),
}
