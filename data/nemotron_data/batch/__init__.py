"""A batch job: send every row of a file to a server and store each answer exactly once."""
