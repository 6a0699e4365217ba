"""The engine's own sampling back end: continuous batching behind prefixes that are stored once."""
