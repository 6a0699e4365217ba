"""Rounds of `data-engine loop`: each samples from a model, rewards, pairs, and has a trainer make the next model."""
