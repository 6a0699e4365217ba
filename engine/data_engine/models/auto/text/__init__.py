"""The text side of a checkpoint of transformers: conversations and pictures to inputs, answers to ids and back."""
