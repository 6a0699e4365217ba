"""Readers of exports that know the formats from their consumers alone: pyarrow and json, nothing of data_engine.

Each module has `read(folder) -> rows` in one normal form, so that formats can be compared: "idx" where the format has
it; "messages", (role, (part, ...)) of all that comes before the answer, where a part is a text or the number of a
picture, counted from 0 in their order; "images", encoded; then "chosen" and "rejected", or "answer", perhaps "label".
"""
