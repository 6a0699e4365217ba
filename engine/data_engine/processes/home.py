"""A home folder for a user who has none: HOME is not set, and the user id has no name, as in many containers."""

import os


def ensure() -> None:
    """For this process and those that it starts. Libraries fail without one, where they look for their caches.

    It is the one that docker and Kubernetes give such a user.
    """
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/"
