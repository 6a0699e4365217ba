"""What people read after a run: the page, its plots, where the time went. No torch here."""
