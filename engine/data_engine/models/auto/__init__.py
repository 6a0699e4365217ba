"""The family `auto`: any AutoModelForImageTextToText of transformers, with its own processor and chat template.

model.py is the family. text/ has its text side, weights/ how it is loaded, forward/ how it runs; the files beside
model.py find out what it is: its configuration, parts, sizes and limits, and whether its layers can share prompts.
"""
