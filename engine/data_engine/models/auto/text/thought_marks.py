"""The marks around a checkpoint's thoughts: those of its template and tokenizer, and those that any may write."""

import re
from collections.abc import Iterable, Iterator

from transformers import PreTrainedTokenizerBase

from data_engine.models.checkpoints.json_files import ModelError
from data_engine.questions.thoughts import KNOWN, Marks, cut

_NAME = "(?:seed:)?(?:think|thinking|thought|thoughts|reason|reasoning)"
# <think>, [THINK], ◁think▷, <|think|>, <|begin_of_thought|>, <|START_THINKING|>, <seed:think>
_OPENS = re.compile(rf"[<\[◁]\|?(?:(?:begin|start)_(?:of_)?)?{_NAME}(?:_(?:begin|start))?\|?[>\]▷]", re.IGNORECASE)
_ENDS_OF = {"begin": "end", "start": "end", "BEGIN": "END", "START": "END", "Begin": "End", "Start": "End"}


def marks_of(template: str, tokenizer: PreTrainedTokenizerBase) -> tuple[Marks, ...]:
    """Every pair of marks by which the thoughts of a checkpoint are found, its own ones first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    own = {
        Marks(opens, ends)
        for opens in _openings([template, *added])
        for ends in _ends(opens)
        if ends in template or ends in added
    }
    own |= {one for one in KNOWN if any(mark in template or mark in added for mark in one)}
    # What the template has comes before what its tokenizer alone has.
    first = sorted(own, key=lambda one: (one.ends not in template, one))
    return (*first, *(one for one in KNOWN if one not in own))


def require_ends(
    told: str, marks: tuple[Marks, ...], tokenizer: PreTrainedTokenizerBase, name: str
) -> tuple[Marks, ...]:
    """The marks, and those that a prompt opens besides: `told` is what the template writes before an answer.

    Raises ModelError where a thought is opened and the tokenizer cannot write its end: no answer could be told from
    its thought.
    """
    known = {mark for one in marks for mark in one}
    # An unknown one that a plain word names is closed as one closes a tag.
    more = [Marks(opens, _ends(opens)[0]) for opens in _openings([told]) if opens not in known]
    marks = (*more, *marks)
    if cut(told, marks).answer is not None:
        return marks
    opened = max(marks, key=lambda one: told.rfind(one.opens))
    if not _is_written(tokenizer, opened.ends, special="|" in opened.opens and opened in more):
        raise ModelError(
            f"{name} opens a thought with {opened.opens}, and its tokenizer has no {opened.ends} to end it: answers "
            "cannot be told from thoughts. Pass a template that opens none with --chat_template FILE, or "
            """--chat_template_kwargs '{"enable_thinking": false}' where the template reads that; of a judge, with """
            "--critic_chat_template_kwargs and the like"
        )
    return marks


def _openings(texts: Iterable[str]) -> Iterator[str]:
    yield from dict.fromkeys(match.group() for text in texts for match in _OPENS.finditer(text))


def _ends(opens: str) -> list[str]:
    """How the end of a thought may be spelled that begins so, the likeliest first."""
    for begin, end in _ENDS_OF.items():
        if begin in opens:
            return [opens.replace(begin, end)]
    inside = [f"{opens[:2]}/{opens[2:]}"] if opens[1] == "|" else []
    return [*inside, f"{opens[0]}/{opens[1:]}"]


def _is_written(tokenizer: PreTrainedTokenizerBase, mark: str, special: bool) -> bool:
    """Whether ids give exactly this text; with `special`, one id of its own alone."""
    ids = tokenizer.encode(mark, add_special_tokens=False)
    written = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False).strip() == mark
    return written and (not special or len(ids) == 1)
