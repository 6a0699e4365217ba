"""Which errors of a shared file system mean that a file is not there (any more)."""

import errno

# ESTALE: NFS, where another host has removed or replaced a file that this one still knew by its old handle.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


def is_absent(error: OSError) -> bool:
    """Whether the file that a call asked for is not there, or no longer the one that was asked for."""
    return error.errno in _ABSENT
