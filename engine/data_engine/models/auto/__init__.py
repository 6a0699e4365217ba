"""The family `auto`: any AutoModelForImageTextToText of transformers, with its own processor and chat template."""
