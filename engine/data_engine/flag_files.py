"""Files of text that a flag names."""

from pathlib import Path

from data_engine.errors import UserError


def read_text(flag: str, path: str, expected: str, otherwise: str) -> str:
    """What is in the file: `expected`. Without the flag, `otherwise` is used.

    Raises UserError where it cannot be read as text, or is empty.
    """
    where = f'{flag} "{path}"'
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}; name a file with {expected}") from None
    # Bytes that are no UTF-8, or a name that no file can have.
    except ValueError:
        raise UserError(f"{where} is not text in UTF-8; name a file with {expected}") from None
    if not text.strip():
        raise UserError(f"{where} is empty; without the flag, {otherwise} is used")
    return text
