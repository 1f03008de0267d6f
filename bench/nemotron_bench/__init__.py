"""`nemotron bench`: how fast a running server is, seen from its clients."""
