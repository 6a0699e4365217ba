"""Models that are split over ranks: DeepSpeed ZeRO-3, and ranks that move in lock-step."""
