"""Recipes for synthetic data: generate answers, score them, keep the good ones."""
