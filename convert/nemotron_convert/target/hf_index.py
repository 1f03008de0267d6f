"""The index of a Hugging Face folder of several files, and the file of a reward model's head."""

from __future__ import annotations

from pathlib import Path

from nemotron_convert.target.json_files import write_json
from nemotron_convert.target.layout import Layout, shard_names
from nemotron_core.errors import NemotronError
from nemotron_core.reward import RewardHead

HF_INDEX_NAME = "model.safetensors.index.json"
SCORE = "score.weight"
"""Name of the head of `NemotronForSequenceClassification`, which has no bias: who serves it adds
that of `reward_head.safetensors`."""


def write_hf_index(folder: Path, layout: Layout, head: RewardHead | None) -> None:
    """Write the index if there are several files, and before it a reward model's head.

    The head is in the last file, in F32. Loaders read the files that the index names, so none takes
    `reward_head.safetensors` for a part of the model. Raises `NemotronError` if a file cannot be
    written.
    """
    weight_map = {tensor: name for name in layout.files for tensor in layout.files[name]}
    sizes = [spec.nbytes for tensors in layout.files.values() for spec in tensors.values()]
    if head is not None:
        from safetensors.numpy import save  # noqa: PLC0415  # only reward models need it

        path = folder / shard_names(len(layout.files) + 1)[-1]
        try:
            path.write_bytes(save({SCORE: head.weight}, {"format": "pt"}))
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=path) from error
        weight_map[SCORE] = path.name
        sizes.append(head.weight.nbytes)
    if len(set(weight_map.values())) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        write_json(folder / HF_INDEX_NAME, index)
