"""Reads a `.nemo` and writes a TensorRT-LLM checkpoint or a Hugging Face folder, in BF16 or FP8."""
