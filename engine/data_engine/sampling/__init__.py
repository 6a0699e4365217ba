"""k answers a question: what a back end is asked for, and how a token is drawn."""
