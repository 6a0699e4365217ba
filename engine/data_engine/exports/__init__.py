"""Datasets that trainers load, a file each. No torch here."""
