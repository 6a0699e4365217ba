"""One seed for each thing that is drawn: from plain values in, the same 63-bit number on any rank, host or rerun."""

import hashlib
import operator


def seed_for(seed: int, *key: int | str) -> int:
    """The same 63-bit seed for the same key; hash() of a string differs between processes.

    numpy's integers and strings count as the plain ones, since their repr does not. Raises TypeError for other types.
    """
    plain = tuple(str(part) if isinstance(part, str) else int(operator.index(part)) for part in (seed, *key))
    digest = hashlib.blake2b(repr(plain).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
