"""`nemotron build` for the TensorRT lane, with stand-ins for `trtllm-build` and for the GPUs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_build.engine_folder import (
    EngineRecord,
    build_engine,
    describe_build,
    open_engine,
)
from nemotron_build.profile import (
    CpuProfile,
    Profile,
    TensorRTProfile,
    load_profile,
    profiles_folder,
    shipped_profiles,
)
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_core.errors import NemotronError
from nemotron_serve.dry_run import describe_serve
from tests.standins.container import Container, make_container
from tests.tiny_nemotron.nemo_file import NEMO

H100 = "NVIDIA H100 80GB HBM3, 81559, 9.0"
BF16_TP8: dict[str, Any] = {
    "dtype": "bf16",
    "gpu": {"name": "H100", "memory_gib": 80, "compute_capability": [9, 0]},
}


def profile_file(folder: Path, name: str = "h200-bf16-tp8", **keys: Any) -> str:
    """Write a shipped profile with other values to a file, and return its path."""
    content = yaml.safe_load((profiles_folder() / f"{name}.yaml").read_text())
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content | keys))
    return str(path)


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Container:
    made = make_container(tmp_path / "container", gpu=H100, version="1.2.1")
    enter(made, monkeypatch)
    return made


def enter(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", container.environment["PATH"])
    monkeypatch.syspath_prepend(str(container.root / "packages"))


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return load_profile(profile_file(tmp_path, **BF16_TP8))


def test_the_engine_and_its_record(
    container: Container, profile: Profile, checkpoint_tp8: Path, tmp_path: Path
) -> None:
    record = build_engine(checkpoint_tp8, tmp_path / "engine", profile)
    assert record == open_engine(tmp_path / "engine")
    assert record.lane == "tensorrt"
    assert record.versions == {"tensorrt-llm": "1.2.1"}
    assert record.gpu == "NVIDIA H100 80GB HBM3, 81559 MiB, sm_90"
    assert record.max_seq_len == 4096
    assert {f"rank{rank}.engine" for rank in range(8)} <= set(record.files)


def test_the_tokenizer_for_guided_decoding(
    container: Container, profile: Profile, checkpoint_tp8: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    build_engine(checkpoint_tp8, tmp_path / "engine", profile)
    info = json.loads((tmp_path / "engine" / "xgrammar_tokenizer_info.json").read_text())
    convert(NEMO, tmp_path / "hf", Options(Parallel(1, 1), format=Format.HF))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    pieces = tokenizer.get_vocab()
    assert info["encoded_vocab"] == sorted(pieces, key=pieces.__getitem__)
    assert info["stop_token_ids"][0] == pieces["<extra_id_1>"]
    written, expected = (
        json.loads(info["tokenizer_str"]),
        json.loads(tokenizer.backend_tokenizer.to_str()),
    )
    assert written["model"] == expected["model"]


def test_a_dry_run_says_the_command_and_builds_nothing(
    profile: Profile, checkpoint_tp8: Path, tmp_path: Path
) -> None:
    output = tmp_path / "engine"
    lines = describe_build(checkpoint_tp8, output, profile).splitlines()
    words = lines[1].split()
    assert words[0] == "trtllm-build"
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    assert flags == {
        "--checkpoint_dir": str(checkpoint_tp8),
        "--output_dir": str(output),
        "--max_batch_size": "64",
        "--max_input_len": "4095",
        "--max_seq_len": "4096",
        "--max_num_tokens": "8192",
        "--max_beam_width": "1",
        "--kv_cache_type": "paged",
        "--gemm_plugin": "bfloat16",
        "--use_paged_context_fmha": "enable",
        "--use_fp8_context_fmha": "disable",
        "--multiple_profiles": "enable",
        "--workers": "8",
    }
    assert str(output / "rank7.engine") in lines
    assert not output.exists()


@pytest.mark.parametrize(
    ("gpu", "version", "message"),
    [
        (H100, "1.3.0", r"tensorrt-llm 1\.3\.0 is installed, which has no engines"),
        ("NVIDIA A100-SXM4-80GB, 81920, 8.0", "1.2.1", r"its compute capability is 8\.0"),
        ("NVIDIA H100 NVL, 49152, 9.0", "1.2.1", "it has 49152 MiB"),
        ("NVIDIA GH200 480GB, 97871, 9.0", "1.2.1", "it is a NVIDIA GH200 480GB"),
        ("no devices", "1.2.1", "prints a line that describes no GPU: 'no devices'"),
    ],
)
def test_a_machine_that_cannot_build(
    gpu: str,
    version: str,
    message: str,
    profile: Profile,
    checkpoint_tp8: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enter(make_container(tmp_path / "container", gpu=gpu, version=version), monkeypatch)
    with pytest.raises(NemotronError, match=message):
        build_engine(checkpoint_tp8, tmp_path / "engine", profile)
    assert not (tmp_path / "engine").exists()


def test_this_machine_cannot_build(profile: Profile, checkpoint_tp8: Path, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=r"tensorrt-llm is not installed.*the profile cpu"):
        build_engine(checkpoint_tp8, tmp_path / "engine", profile)


def test_a_build_that_fails_says_its_last_lines(
    container: Container, profile: Profile, checkpoint_tp8: Path, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(checkpoint_tp8, tmp_path / "checkpoint")
    (checkpoint / "fail").touch()
    with pytest.raises(NemotronError, match=r"trtllm-build ended with status 1: .*out of memory"):
        build_engine(checkpoint, tmp_path / "engine", profile)
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("h100-fp8-tp8", {}, "has dtype bf16, the profile fp8.*convert with --dtype fp8"),
        ("h100-bf16-tp8-pp2", {}, "has PP 1, the profile 2.*convert with --pp 2"),
        ("h200-bf16-tp8", {"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
    ],
)
def test_a_checkpoint_of_another_kind(
    name: str, keys: dict[str, Any], message: str, checkpoint_tp8: Path, tmp_path: Path
) -> None:
    with pytest.raises(NemotronError, match=message):
        describe_build(
            checkpoint_tp8, tmp_path / "engine", load_profile(profile_file(tmp_path, name, **keys))
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"enable_xqa": "enable"}, "enable_xqa is no flag of trtllm-build 1.2 any more"),
        ({"use_custom_all_reduce": "disable"}, "any more: leave it out"),
        ({"max_batch_size": 8}, "max_batch_size is no flag .* that a profile may set"),
        ({"gemm_plugin": "bf16"}, "gemm_plugin is 'bf16': use one of auto"),
        ({"workers": "many"}, "workers is 'many': use a positive number"),
        ({"reduce_fusion": "enable"}, "must not be 'enable': the decoder layer"),
        ({"norm_quant_fusion": "enable"}, "must not be 'enable': the decoder layer"),
        ({"use_fp8_context_fmha": "enable"}, "needs FP8 weights and an FP8 KV cache"),
    ],
)
def test_flags_that_this_model_cannot_use(
    flags: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(NemotronError, match=message):
        load_profile(profile_file(tmp_path, build_flags=flags))


def test_a_split_that_is_not_the_gpus(tmp_path: Path) -> None:
    split = {"tp": 8, "pp": 2, "nodes": 1, "gpus_per_node": 8}
    with pytest.raises(NemotronError, match="tp × pp is 16, but 1 nodes with 8 GPUs each have 8"):
        load_profile(profile_file(tmp_path, split=split))


def test_fp8_where_the_gpu_has_none(tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match="A100 does not compute in FP8"):
        load_profile(profile_file(tmp_path, "a100-bf16-tp8-pp2", dtype="fp8"))


def record_of(profile: Profile) -> EngineRecord:
    return EngineRecord(
        lane=profile.lane,
        profile=profile,
        versions={},
        gpu=None,
        checkpoint="",
        max_seq_len=4096,
        vocab_size=256000,
        files={},
    )


def configs(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the name of each model in a dry run, and its configuration as Triton parses it."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    for part in text.split("\n# ")[1:]:
        path, _, content = part.partition("\n")
        if path.endswith("/config.pbtxt"):
            yield path.split("/")[-2], text_format.Parse(content, ModelConfig())


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_profile_renders_what_triton_parses(name: str) -> None:
    profile = load_profile(name)
    text = describe_serve(Path("/engine"), record_of(profile), profile, ["/engine"])
    rendered = dict(configs(text))
    assert {"ensemble", "tensorrt_llm", "tensorrt_llm_bls", "generate"} <= set(rendered)
    assert all(name == config.name for name, config in rendered.items())
    assert "${" not in text
    engine = rendered["tensorrt_llm"]
    assert engine.model_transaction_policy.decoupled
    assert engine.parameters["gpt_model_path"].string_value == "/engine"
    assert engine.backend == ("tensorrtllm" if isinstance(profile, TensorRTProfile) else "python")
    is_ours = profile.lane != "tensorrt"
    assert (rendered["ensemble"].platform == "ensemble") == is_ours
    if isinstance(profile, CpuProfile):
        assert "mpirun" not in text


def test_the_configuration_for_the_cpp_backend() -> None:
    profile = load_profile("h100-fp8-tp8")
    text = describe_serve(Path("/engine"), record_of(profile), profile, ["/engine"])
    engine = dict(configs(text))["tensorrt_llm"]
    parameters = {key: value.string_value for key, value in engine.parameters.items()}
    assert engine.max_batch_size == 64
    assert engine.dynamic_batching.default_queue_policy.max_queue_size == 448
    assert parameters["gpt_model_type"] == "inflight_fused_batching"
    assert parameters["kv_cache_free_gpu_mem_fraction"] == "0.9"
    assert parameters["enable_chunked_context"] == "true"
    assert parameters["num_nodes"] == "1"
    assert parameters["exclude_input_in_output"] == "true"
    # The backend throws without these three, even if they are not used.
    assert {"tokenizer_dir", "guided_decoding_backend", "xgrammar_tokenizer_info_path"} <= set(
        parameters
    )
    inputs = {entry.name: entry for entry in engine.input}
    assert not inputs["input_lengths"].optional
    assert inputs["end_id"].HasField("reshape")
    assert list(inputs["end_id"].reshape.shape) == []
    assert inputs["input_ids"].allow_ragged_batch
    assert list(inputs["stop_words_list"].dims) == [2, -1]


def test_two_nodes_are_started_by_slurm() -> None:
    profile = load_profile("h100-bf16-tp8-pp2")
    text = describe_serve(Path("/engine"), record_of(profile), profile, ["/engine"])
    lines = text.splitlines()
    assert lines[0] == "# 16 ranks, one on each GPU"
    assert lines[1].startswith("srun --nodes=2 --ntasks-per-node=8 --mpi=pmix")
    assert lines[1].endswith("-m nemotron_cli serve /engine")
    worker = lines[lines.index("# ranks 1 to 15") + 1]
    assert "--load-model=tensorrt_llm" in worker
    assert "--allow-http=false --allow-grpc=false --allow-metrics=false" in worker
