"""Errors, files, the Triton contract, text and the OpenAI schema, for every other package."""
