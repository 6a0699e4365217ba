"""Files that flags name: read whole, as text, before a run begins."""

from pathlib import Path

from data_engine.errors import UserError


def read_text(where: str, path: str, expected: str, otherwise: str | None = None) -> str:
    """What is in the file; `where` names the flag, `expected` says what to name instead, `otherwise` what is used
    without the flag, where an empty file means a mistake.

    Raises UserError where it cannot be read, is not text in UTF-8, or is empty and may not be.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}; name a file with {expected}") from None
    # Bytes that are no UTF-8, or a name that no file can have.
    except ValueError:
        raise UserError(f"{where} is not text in UTF-8; name a file with {expected}") from None
    if otherwise is not None and not text.strip():
        raise UserError(f"{where} is empty; without the flag, {otherwise} is used")
    return text
