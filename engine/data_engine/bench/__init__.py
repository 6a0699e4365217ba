"""What `data-engine bench` times, and on what."""
