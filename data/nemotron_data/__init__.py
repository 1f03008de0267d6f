"""Batch jobs and synthetic data: send many rows to a server and store each answer exactly once."""
