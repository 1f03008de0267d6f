"""What the Triton models are made of. Only Triton's Python backend can import its modules."""
