"""The native families, LLaVA-1.5 and OmniLMM: checkpoints and prompts of their own, read and run without a template."""
