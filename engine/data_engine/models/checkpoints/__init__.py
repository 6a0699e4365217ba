"""How a checkpoint folder is read: its configuration, its weights, and adapters laid over them."""
