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
from nemotron_build.lanes import lane_of
from nemotron_build.lanes.gpu import LAUNCHER
from nemotron_build.profile import (
    Profile,
    load_profile,
    profiles_folder,
    shipped_profiles,
)
from nemotron_core.engine_settings import TensorRTEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer
from nemotron_core.text.sentencepiece_model import SentencePieceModel
from nemotron_serve.dry_run import describe_serve
from nemotron_serve.ranks import EngineLaunch, check_launch, engine_launch
from tests.standins.container import Container, make_container

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


def test_the_library_finds_its_settings_and_its_vocabulary(
    container: Container, profile: Profile, checkpoint_tp8: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    engine = tmp_path / "engine"
    build_engine(checkpoint_tp8, engine, profile)
    settings = TensorRTEngineSettings.read(engine)
    assert (settings.max_batch_size, settings.max_seq_len, settings.vocab_size) == (64, 4096, 1536)
    assert (settings.paged_context, settings.kv_cache_share) == (True, 0.9)
    # As the library loads it, beside a config.json that is not transformers'.
    sides = {"padding_side": "left", "truncation_side": "left"}
    tokenizer = AutoTokenizer.from_pretrained(engine, legacy=False, use_fast=True, **sides)
    pieces = SentencePieceModel.parse((engine / "tokenizer.model").read_bytes()).pieces
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary, key=vocabulary.__getitem__) == [piece.text for piece in pieces]
    assert tokenizer.eos_token_id in Tokenizer(engine / "tokenizer.model").end_ids


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
    ("logits", "switches"),
    [
        ("none", []),
        ("generation", ["--gather_generation_logits"]),
        ("context", ["--gather_context_logits", "--gather_generation_logits"]),
    ],
)
def test_an_engine_with_logits(
    logits: str, switches: list[str], container: Container, checkpoint_tp8: Path, tmp_path: Path
) -> None:
    profile = load_profile(profile_file(tmp_path, logits=logits, **BF16_TP8))
    engine = tmp_path / "engine"
    command = describe_build(checkpoint_tp8, engine, profile).splitlines()[1].split()
    assert command[command.index("--workers") + 2 :] == switches
    build_engine(checkpoint_tp8, engine, profile)
    assert TensorRTEngineSettings.read(engine).logits == logits
    built = json.loads((engine / "config.json").read_text())["build_config"]
    assert [f"--{name}" for name, value in built.items() if value is True] == switches


@pytest.mark.parametrize(
    ("gpu", "version", "message"),
    [
        (H100, "1.3.0", r"tensorrt-llm 1\.3\.0 is installed, this lane needs ~=1\.2\.0"),
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
    text = describe_serve(Path("/engine"), record_of(profile), profile)
    rendered = dict(configs(text))
    assert {"ensemble", "tensorrt_llm", "tensorrt_llm_bls", "generate"} <= set(rendered)
    assert all(name == config.name for name, config in rendered.items())
    assert "${" not in text
    assert {config.backend for config in rendered.values()} == {"python", ""}
    assert rendered["ensemble"].platform == "ensemble"
    assert ("srun" in text) == ("pp2" in name)


@pytest.mark.parametrize("name", ["h100-bf16-tp8-pp2", "h100-bf16-tp8-pp2-pytorch"])
def test_slurm_starts_the_engine_on_two_nodes(name: str) -> None:
    profile = load_profile(name)
    text = describe_serve(Path("/engine"), record_of(profile), profile)
    first, command, *_ = text.splitlines()
    assert first == "# engine"
    launcher = "srun --nodes=2 --ntasks-per-node=8 --mpi=pmix --kill-on-bad-exit=1"
    assert command.startswith(f"{launcher} trtllm-llmapi-launch ")
    assert f"-m nemotron_engine --lane {profile.lane}" in command


@pytest.mark.parametrize(
    ("name", "place", "launcher"),
    [
        ("cpu", None, []),
        ("cpu", (0, 16), []),
        ("h100-fp8-tp8", None, []),
        ("h100-fp8-tp8", (0, 2), []),
        ("h100-fp8-tp8", (0, 8), [LAUNCHER]),
        ("h100-bf16-tp8-pp2", (0, 16), [LAUNCHER]),
    ],
)
def test_the_processes_of_a_launcher_become_ranks_if_their_number_fits(
    name: str, place: tuple[int, int] | None, launcher: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load_profile(name)
    deployment = lane_of(profile).deployment(profile)
    launch = engine_launch(deployment, place)
    assert list(launch.prefix[:1]) == launcher
    assert launch.is_rank == bool(launcher)
    if (mark := deployment.launch.mark) is not None:
        monkeypatch.setenv(mark, "1")
        assert engine_launch(deployment, place) == EngineLaunch()


def test_another_number_of_processes_than_ranks() -> None:
    profile = load_profile("h100-bf16-tp8-pp2")
    deployment = lane_of(profile).deployment(profile)
    with pytest.raises(NemotronError, match=r"started 8 processes, the engine has 16"):
        engine_launch(deployment, (0, 8))
    with pytest.raises(NemotronError, match=r"no trtllm-llmapi-launch on PATH"):
        check_launch(deployment, engine_launch(deployment, (0, 16)))


def test_hosts_get_a_rank_on_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    profile = load_profile("h100-bf16-tp8-pp2")
    deployment = lane_of(profile).deployment(profile)
    command = engine_launch(deployment, None, ["localhost", "other"]).prefix
    words = " ".join(command)
    assert words.endswith(" ".join(deployment.launch.prefix))
    assert "mpirun" in command[0]
    assert "-n 16 --host localhost:8,other:8 --map-by slot" in words
    assert "-x NCCL_DEBUG" in words
    assert "-x PATH" in words
