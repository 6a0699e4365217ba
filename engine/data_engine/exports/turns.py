"""Conversations as trainers write them: messages of a role and a text, with a marker where each picture stands."""

from data_engine.questions.conversation import Conversation, Message

MARKER = "<image>"


def marked(message: Message, behind: str = "") -> str:
    """The message's text with MARKER at the place of each picture; `behind` follows a picture before a text."""
    text = ""
    for number, part in enumerate(message.content):
        if isinstance(part, str):
            text += part
            continue
        followed = number + 1 < len(message.content) and isinstance(message.content[number + 1], str)
        text += MARKER + (behind if followed else "")
    return text


def pictures_in_order(conversation: Conversation) -> bool:
    """Whether the pictures stand in the messages in their order, and only in those of the user."""
    found = [part for message in conversation.messages for part in message.content if isinstance(part, int)]
    users = [part for message in conversation.messages if message.role == "user"
             for part in message.content if isinstance(part, int)]  # fmt: skip
    return found == users == list(range(len(found)))
