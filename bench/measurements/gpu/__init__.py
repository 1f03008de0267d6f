"""Measurements on one GPU, each a script for the environment with vLLM."""
