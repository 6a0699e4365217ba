"""How a model of transformers runs: a prompt by its own forward, several in one pass, answers by its own decoding."""
