"""Programs of others that ask the questions and score the answers, each in its own environment."""
