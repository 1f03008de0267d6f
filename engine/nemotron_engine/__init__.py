"""Engines that turn tokens into tokens, and what the Triton models share."""
