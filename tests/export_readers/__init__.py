"""Readers of exports that share no code with the engine: a folder in, its rows in one form for all formats out.

A row of pairs is {"messages": [(role, (part, ...)), ...], "images": [bytes, ...], "chosen": str, "rejected": str}, one
of answers has "answer" in their place, and "label" where the format has labels. A part is a text that is not empty, or
the number of a picture.
"""
