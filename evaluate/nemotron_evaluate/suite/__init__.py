"""What is evaluated: the model card's benchmarks as data, suites of them, and scored items."""
