"""The tiny world behind `make demo`: pictures whose contents are known exactly, and tiny models trained on them."""
