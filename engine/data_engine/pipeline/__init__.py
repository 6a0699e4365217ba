"""What a unit of a stage computes: sample, score, pair. They meet in files only."""
