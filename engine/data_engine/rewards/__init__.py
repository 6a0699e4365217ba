"""Sources of reward: from what a stage computed about the answers to numbers that rank them."""
