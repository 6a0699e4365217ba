"""What people start: `data-engine COMMAND`, a file each."""
