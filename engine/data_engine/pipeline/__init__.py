"""What a unit of a stage computes: answers, log-probs, and the numbers of judges and rules; then pairs and exports.

The stages meet in files only.
"""
