"""Models that are split over ranks by DeepSpeed ZeRO-3, whose ranks then run in lock-step."""
