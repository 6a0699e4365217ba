"""From rewards to pairs: strategies make candidates, filters drop some, and every drop is counted. No torch here."""
