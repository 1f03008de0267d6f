"""Mutation testing of the rules on which the most depends, by cosmic-ray; run by hand."""
