"""Transports: an OpenAI-compatible server over HTTP, or Triton over gRPC, behind one protocol."""
