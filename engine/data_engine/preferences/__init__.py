"""From rewards to pairs: strategies, filters, and what became of each candidate. No torch here."""
