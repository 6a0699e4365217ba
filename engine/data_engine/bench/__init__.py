"""`data-engine bench`: what is timed, how, and the figures and table that are made of it."""
