"""Verification: run a checkpoint rank by rank and compare each operation with its source."""
