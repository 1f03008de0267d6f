"""Shards as tasks of a real Ray, of two workers on this machine: `make test-ray`."""
