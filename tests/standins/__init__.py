"""Stand-ins for what needs a GPU, and for nothing else; each says what it stands for."""
