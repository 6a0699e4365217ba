"""What people look at behind a run: the page, its plots, where the time went. No torch here."""
