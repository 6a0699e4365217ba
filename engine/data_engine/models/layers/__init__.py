"""How a decoder computes: its attention, a prompt's keys and values that answers share, its linear layers."""
