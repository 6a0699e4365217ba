"""How far a run is: read from its work_dir (reader), as data (progress), shown as a table, a screen or JSON."""
