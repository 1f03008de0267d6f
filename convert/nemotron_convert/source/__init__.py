"""Readers of the source checkpoint: its container, its configuration and its stored arrays."""
