"""Two servers on the same tokens: how far apart their distributions and their answers are."""
