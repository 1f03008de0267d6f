"""Batch jobs and synthetic data: many rows to a server, every answer in a file exactly once."""
