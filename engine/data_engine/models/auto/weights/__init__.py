"""Weights of a checkpoint of transformers: loaded, merged with an adapter, split over ranks; a reward model's head."""
