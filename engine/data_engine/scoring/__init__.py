"""Teacher-forced log-probs of continuations behind a prefix."""
