"""Print what a GGUF file says: FILE."""

from __future__ import annotations

import json
import sys

from gguf import GGUFReader

KEYS = (
    "general.architecture",
    "nemotron.block_count",
    "nemotron.attention.head_count_kv",
    "nemotron.rope.dimension_count",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.chat_template",
)
reader = GGUFReader(sys.argv[1])
report = {key: reader.fields[key].contents() for key in KEYS}
report["types"] = reader.fields["tokenizer.ggml.token_type"].contents()[:8]
report["tokens"] = reader.fields["tokenizer.ggml.tokens"].contents()[:8]
norm = next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
report["norm"] = norm.data.tolist()
report["tensors"] = len(reader.tensors)
print(json.dumps(report))
