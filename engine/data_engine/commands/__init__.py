"""What people start: `data-engine COMMAND`, one file for each."""
