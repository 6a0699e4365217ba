"""A SentencePiece model of the kind BPE as a tokenizer of the package tokenizers, which gives the same ids.

Source of the equivalence: both merge, again and again, the neighbours whose union has the best score; SentencePiece
keeps the scores of the unions, tokenizers the order of the pairs.
"""

import functools
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from data_engine.models.checkpoints.json_files import ModelError, reason

SPACE = "\u2581"
# Where another normaliser, another kind of model or a special rule would show.
SAMPLES = (
    "a", "What is in the picture?", "two  spaces,   three ", "line\n\nfeeds\tand tabs", "café naïve ﬁ ①Å",
    "你是书生·万象，英文名是InternVL。", "日本語と한국어", "العربية", "🦓🦓 emoji",
    "x = {1: 'a', 22: [3.14]}\n    return x", "HelloHelloHello aaaaaaaaa", "\\frac{1}{2} $5", "1234567890",
)  # fmt: skip


@functools.lru_cache(4)
def build(path: Path, stamp: tuple[int, ...], first_alone: bool, renamed: tuple[tuple[int, str], ...]) -> str:
    """The tokenizer as JSON, without added tokens; `stamp` is of the file's content, for the cache.

    Where the model puts a space before a text, it stands before each text between added tokens, or, with `first_alone`,
    before the first alone. `renamed`: (id, text) of added tokens, which may have the place of a piece.
    Raises ModelError for a model whose ids it does not give.
    """
    try:
        processor = SentencePieceProcessor(model_file=str(path))
        pieces = [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
        scores = list(map(processor.get_score, range(len(pieces))))
    # ValueError: a piece is no UTF-8.
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(f"{path} is not a SentencePiece model: {reason(error)}") from error
    taken = {number for number, _ in renamed}
    kept = {
        piece: number for number, piece in enumerate(pieces) if number not in taken and not _is_odd(processor, number)
    }
    merges, unreachable = _merges(kept, scores)
    for number, text in renamed:
        if number < len(pieces):
            pieces[number] = text
    made = Tokenizer(models.BPE(
        {piece: number for number, piece in enumerate(pieces)}, merges, unk_token=pieces[processor.unk_id()],
        fuse_unk=True, byte_fallback=any(map(processor.is_byte, range(len(pieces)))),
    ))  # fmt: skip
    _set_spaces(made, processor, first_alone)
    whole = [piece for piece in unreachable if kept[piece] in processor.encode(piece.replace(SPACE, " "))]
    made.add_tokens([AddedToken(piece, normalized=False) for piece in whole])
    _compare(made, processor, path)
    return made.to_str()


def _is_odd(processor: SentencePieceProcessor, number: int) -> bool:
    """Whether no text becomes this piece by merging."""
    kinds = (processor.is_control, processor.is_unknown, processor.is_unused, processor.is_byte)
    return any(kind(number) for kind in kinds)


def _merges(kept: dict[str, int], scores: list[float]) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of pieces, the first to merge first, and the pieces of several characters that no pair makes."""
    found, unreachable = [], []
    for piece, number in kept.items():
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = sorted(
            (kept[left], kept[right], left, right) for left, right in pairs if left in kept and right in kept
        )
        found += [(-scores[number], number, *pair) for pair in known]
        if pairs and not known:
            unreachable.append(piece)
    found.sort()
    return [(left, right) for *_, left, right in found], unreachable


def _set_spaces(made: Tokenizer, processor: SentencePieceProcessor, first_alone: bool) -> None:
    has_prefix = "".join(processor.encode("a", out_type=str)) == f"{SPACE}a"
    if has_prefix and first_alone:
        made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    else:
        prefix = [normalizers.Prepend(SPACE)] if has_prefix else []
        made.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])


def _compare(made: Tokenizer, processor: SentencePieceProcessor, path: Path) -> None:
    """Raise ModelError where the two give other ids."""
    for text in SAMPLES:
        if made.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise ModelError(
                f"{path} is a SentencePiece model of another kind than BPE, or has rules of its own for {text!r}: "
                "pass a checkpoint with a tokenizer.json"
            )
