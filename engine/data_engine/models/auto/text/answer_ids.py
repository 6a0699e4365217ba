"""The ids of an answer that is given as text, as training has them behind its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from data_engine.errors import BadRow
from data_engine.models.auto.text.chat_template import ANSWER, WORD, ChatTemplate, neutral
from data_engine.models.auto.text.control_tokens import ControlTokens
from data_engine.questions.conversation import Conversation, Message
from data_engine.questions.thoughts import KNOWN, Marks, cut


@dataclass(frozen=True)
class Tail:
    """What a template puts around an answer."""

    prompt: str
    """end of the prompt, from its last control token on"""
    before: str
    """between the prompt and the answer"""
    after: str
    """between the answer and its end, mostly nothing"""
    end: int
    """the id that ends the answer"""
    marks: tuple[Marks, ...] = KNOWN
    """around thoughts, which are a part of an answer though the template writes them too"""

    def is_mark(self, token: str) -> bool:
        return any(token in one for one in self.marks)


def first_special(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The first special token that a text of the template gives."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((number for number in tokenizer.encode(text, add_special_tokens=False) if number in special), None)


def behind_answer(template: ChatTemplate, conversation: Conversation) -> tuple[str, str]:
    """What the template writes between the prompt and an answer, and behind the answer; nothing where it changes
    the prompt for it.
    """
    bare = Conversation(conversation.messages)
    try:
        prompt, whole = template.render(bare), template.render(bare, ANSWER)
    # A template for a single question has no form of an answer.
    except BadRow:
        return "", ""
    if not whole.startswith(prompt) or whole.count(ANSWER) != 1:
        return "", ""
    before, _, after = whole[len(prompt) :].partition(ANSWER)
    return before, after


def tail(template: ChatTemplate, controls: ControlTokens, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int],
         conversation: Conversation) -> Tail:  # fmt: skip
    """What is put around an answer to a conversation, of whose texts the beginning of the answer alone matters."""
    asked, start = neutral(conversation), conversation.answer_start
    before, after = behind_answer(template, asked)
    places = {number: after.find(tokenizer.convert_ids_to_tokens(number)) for number in ends}
    places = {number: place for number, place in places.items() if place >= 0}
    if places:
        end = min(places, key=places.__getitem__)
        after = after[: places[end]]
    else:
        # Space in front of the next turn is no part of the answer.
        end, after = _turn_end(template, tokenizer, ends, asked), after.rstrip()
    prompt = template.render(Conversation(asked.messages))
    prompt = prompt[max((0, *(prompt.rfind(token) for token in controls.texts))) :]
    # Control tokens of the beginning are text, which they would not be here.
    prompt = "\n" if controls.first_in(start) else prompt + start
    return Tail(prompt, "" if start else before, after, end)


def _turn_end(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int],
              asked: Conversation) -> int:  # fmt: skip
    """What ends an answer that the template puts no end to: the next turn's beginning where generation_config.json
    says so (GLM), else the tokenizer's end.
    """
    again = (*asked.messages, Message("assistant", (ANSWER,)), Message("user", (WORD,)))
    try:
        _, _, following = template.render(Conversation(again)).rpartition(ANSWER)
    except BadRow:
        following = ""
    turn = first_special(tokenizer, following)
    return turn if turn in ends else ends[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def encode(tokenizer: PreTrainedTokenizerBase, controls: ControlTokens, around: Tail, answer: str) -> list[int]:
    """Ids of the answer and its end; control tokens in its text stay text, except for those around thoughts.

    Raises BadRow where the tokenizer makes a control token of the text in any case.
    """
    # Those that the template writes behind the answer are tokens, as in training.
    if controls.first_in(around.after):
        *ids, end = encode(tokenizer, controls, replace(around, after=""), answer)
        return [*ids, *_behind(tokenizer, "x", around.after), end]
    before, text = around.before, answer + around.after
    if not any(token in text for token in controls.texts if not around.is_mark(token)):
        return [*_behind(tokenizer, around.prompt, before + text), around.end]
    ids = _behind(tokenizer, around.prompt, before) if before.strip() else []
    return [*ids, *_plain(tokenizer, controls, around, text if ids else before + text), around.end]


def with_thought(around: Tail, answer: str, opened: bool) -> tuple[Tail, str]:
    """An answer with its thought, or without one, as the model would have written it, and what is put around it.

    `opened`: the prompt opens a thought. Then a thought is not opened again, and an answer without one ends it first.
    The marks of another model become those of this one; `around.marks` has its own first.
    """
    own, thought = around.marks[0], cut(answer, around.marks).thought
    has_thought = cut(around.before, around.marks).thought is not None
    if thought is None:
        ended = f"{around.before}{own.ends}" if opened and not has_thought else around.before
        return replace(around, before=ended), answer
    for other in around.marks[1:]:
        answer = answer.replace(other.ends, own.ends).replace(other.opens, own.opens)
    begun = answer.lstrip().startswith(own.opens)
    if opened and begun:
        answer = answer.lstrip().removeprefix(own.opens)
        answer = answer.removeprefix("\n") if around.prompt.endswith("\n") else answer
    elif not opened and not begun:
        answer = own.opens + answer
    # An answer that brings its own thoughts needs none of the template's.
    return (replace(around, before="") if has_thought else around), answer


def _behind(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> list[int]:
    """Ids of a text behind another; alone, a tokenizer of SentencePiece's kind would put a space before it."""
    for anchor in (prompt, "\n", "x"):
        ids = tokenizer.encode(anchor, add_special_tokens=False)
        both = tokenizer.encode(anchor + text, add_special_tokens=False)
        if both[: len(ids)] == ids:
            return both[len(ids) :]
    return tokenizer.encode(text, add_special_tokens=False)


def _plain(tokenizer: PreTrainedTokenizerBase, controls: ControlTokens, around: Tail, text: str) -> list[int]:
    """Ids of a text in which no control token is parsed."""
    told = ""
    for encoded in (_split, _without_added):
        lead = encoded(tokenizer, "\n")
        ids = encoded(tokenizer, f"\n{text}")
        ids = ids[len(lead) :] if ids[: len(lead)] == lead else encoded(tokenizer, text)
        told = next((token for token in controls.counted(ids) if not around.is_mark(token)), "")
        if not told:
            return ids
    raise BadRow(f"answer contains the control token {told}, which this tokenizer cannot read as text")


def _split(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def _without_added(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Without the added tokens that are not special either; slow tokenizers have no such way."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _split(tokenizer, text)
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]
    return [token.id for piece in pieces for token in backend.model.tokenize(piece)]
