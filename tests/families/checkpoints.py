"""The tiny checkpoints as folders, each made once a session, and what is loaded from them."""

import contextlib
import copy
import io
import json
from functools import cached_property
from pathlib import Path

from asked import ASKED, Asked
from families import FAMILIES, Family


class Checkpoint:
    """One family's folder, in which model and processor lie as save_pretrained leaves them."""

    def __init__(self, name: str, parent: Path, family: Family | None = None) -> None:
        """Of one of FAMILIES by name, or of another one."""
        self.family = family or FAMILIES[name]
        self.folder = parent / name
        self.built, self.processor = self.family.build()
        # accelerate imports DeepSpeed here, whose log goes to the standard output, which a test may read.
        with contextlib.redirect_stdout(io.StringIO()):
            self.built.save_pretrained(self.folder)
        self.processor.save_pretrained(self.folder)
        if self.family.video:
            # As in a published checkpoint; to make a video processor takes torchvision.
            path = self.folder / "processor_config.json"
            settings = json.loads(path.read_text())
            path.write_text(json.dumps(settings | {"video_processor": {"video_processor_type": self.family.video}}))

    def reloaded(self) -> "Checkpoint":
        """The same, without what the product loaded."""
        fresh = copy.copy(self)
        fresh.__dict__.pop("model", None)
        return fresh

    def asked(self) -> dict[str, Asked]:
        """The prompts that it takes."""
        return {name: asked for name, asked in ASKED.items() if self.family.takes(len(asked.sizes))}

    @cached_property
    def stock(self):
        """reference.Stock"""
        from reference import Stock

        return Stock(self.folder, self.processor)

    @cached_property
    def model(self):
        """The product's."""
        import product

        return product.load(self.folder)

    @cached_property
    def ends(self) -> list[int]:
        """Ids that end an answer."""
        tokenizer = self.processor.tokenizer
        named = [self.family.end] if self.family.end else []
        return sorted({tokenizer.eos_token_id, *map(tokenizer.convert_tokens_to_ids, named)})
