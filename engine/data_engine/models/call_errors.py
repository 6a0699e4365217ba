"""What a decoder or a tower of transformers raises that is called in a way that it does not know."""

from data_engine.models.checkpoints.json_files import reason


def why_not_called(error: Exception) -> str:
    """What it raised, in words.

    Raises it again where a file could not be read or written, as of Triton's cache in a home that is full: that is no
    fault of the call. `inspect`, where it finds no source, raises OSError without a number.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return f"{type(error).__name__}: {reason(error)}"
