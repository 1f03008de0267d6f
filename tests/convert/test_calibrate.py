"""Tests of calibration: its data, its hidden states and how it is resumed."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nemotron_convert.arguments import ConvertArguments
from nemotron_convert.calibration import hidden_states
from nemotron_convert.calibration.calibration_pass import CalibrationPass
from nemotron_convert.calibration.data import read_ids, read_texts
from nemotron_convert.calibration.hidden_states import HiddenStates
from nemotron_convert.calibration.options import CALIBRATION_NAME, CalibrationOptions
from nemotron_convert.commands import conversion_options
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.layout import Dtype, Precision
from nemotron_convert.target.manifest import changed_files, read_manifest
from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer
from tests.convert.nemo import GOLDEN, NEMO, pack, unpack
from tests.convert.test_mpi import mpirun
from tests.tiny_nemotron.nemo_file import NEMO as TRAINED
from tests.tiny_nemotron.reference import load_hf_model

IDS = GOLDEN / "calibration_ids.json"
NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
FP8 = Precision(Dtype.FP8)


def options(resume: bool = False, **calibration: object) -> Options:
    return Options(
        Parallel(2, 1), resume=resume, precision=FP8, calibration=CalibrationOptions(**calibration)
    )


def layers(folder: Path) -> object:
    return json.loads((folder / CALIBRATION_NAME).read_text())["layers"]


def test_the_largest_inputs_are_transformers_own(tmp_path: Path) -> None:
    """Compared with a float32 model on sequences of different lengths, without padding."""
    with Source.open(TRAINED) as source:
        data = read_texts(None, source, 48)
    rows = [list(row) for row in data.sequences[:5]] + [list(data.sequences[5][:7])]
    (tmp_path / "ids.json").write_text(json.dumps(rows))
    convert(TRAINED, tmp_path / "out", options(ids=tmp_path / "ids.json"))
    model = load_hf_model(TRAINED)
    largest: dict[str, float] = {}

    def watch(name: str) -> object:
        def hook(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), inputs[0].abs().max().item())

        return hook

    names = {"q_proj": "attention.qkv", "o_proj": "attention.dense"}
    names |= {"up_proj": "mlp.fc", "down_proj": "mlp.proj"}
    for path, module in model.named_modules():
        if (last := path.rpartition(".")[2]) in names:
            layer = path.split(".")[2]
            module.register_forward_pre_hook(watch(f"{layer} {names[last]}"))
    with torch.inference_mode():
        for row in rows:
            model(torch.tensor([row]))
    calibrated = layers(tmp_path / "out")
    assert isinstance(calibrated, list)
    assert len(largest) == 4 * len(calibrated)
    for number, layer in enumerate(calibrated):
        for name, amax in layer["linears"].items():
            assert amax["input"] == pytest.approx(largest[f"{number} {name}"], rel=0.03), name


def test_disk_and_memory_calibrate_alike(tmp_path: Path) -> None:
    convert(NEMO, tmp_path / "memory", options(ids=IDS))
    convert(NEMO, tmp_path / "disk", options(ids=IDS, memory=0))
    assert layers(tmp_path / "memory") == layers(tmp_path / "disk")


KILLED_IN_LAYER_2 = """
import os, signal, sys
from nemotron_convert.calibration import hidden_states
from nemotron_convert.calibration.calibration_pass import CalibrationPass
hidden_states.SNAPSHOT_SECONDS, hidden_states.SNAPSHOT_FRACTION = 0.0, 1e9
original = CalibrationPass._run_layer
def run_layer(self, layer, *arguments):
    if layer == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, layer, *arguments)
CalibrationPass._run_layer = run_layer
sys.argv[0] = "nemotron"
from nemotron_cli.main import main
main()
"""


@pytest.mark.parametrize("memory", ["0", "8"])
def test_a_killed_calibration_goes_on_from_its_layer(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(NEMO, tmp_path / "expected", options(ids=IDS))
    arguments = ["convert", str(NEMO), "-o", str(tmp_path / "out"), "--tp", "2", "--dtype", "fp8"]
    arguments += ["--calibrate-ids", str(IDS), "--calibrate-memory", memory]
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_LAYER_2, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    state = tmp_path / "out.partial" / "journal" / "calibration" / "0-of-1" / "state.json"
    assert len(json.loads(state.read_text())["layers"]) == 2
    computed_layers = []
    run_layer = CalibrationPass._run_layer

    def recording(self: CalibrationPass, layer: int, *arguments: Any) -> object:
        computed_layers.append(layer)
        return run_layer(self, layer, *arguments)

    monkeypatch.setattr(CalibrationPass, "_run_layer", recording)
    resumed = options(resume=True, ids=IDS, memory=int(float(memory) * 1e9))
    manifest = convert(NEMO, tmp_path / "out", resumed)
    assert computed_layers == [2, 3]
    assert manifest == read_manifest(tmp_path / "expected")
    assert changed_files(tmp_path / "out", manifest) == []


def test_other_texts_are_another_conversion(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    first = options(ids=IDS)
    with Source.open(NEMO) as source:
        data = read_ids(IDS, source)
    (tmp_path / "ids.json").write_text(json.dumps(data.sequences[:4]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nemotron_convert.conversion.Conversion._copy", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(NEMO, tmp_path / "out", first)
    again = options(resume=True, ids=tmp_path / "ids.json")
    with pytest.raises(NemotronError, match="begun with another calibration"):
        convert(NEMO, tmp_path / "out", again)


def test_several_processes_share_the_sequences(tmp_path: Path) -> None:
    convert(NEMO, tmp_path / "expected", options(ids=IDS))
    arguments = ["convert", str(NEMO), "-o", str(tmp_path / "out"), "--tp", "2", "--dtype", "fp8"]
    done = mpirun(3, *arguments, "--calibrate-ids", str(IDS))
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "out") == read_manifest(tmp_path / "expected")


def test_the_projects_own_texts(tokenizer: Tokenizer) -> None:
    with Source.open(TRAINED) as source:
        data = read_texts(None, source)
        assert data.name == "built-in texts"
        assert len(data.sequences) >= 30
        limit = source.config.max_positions
        assert max(map(len, data.sequences)) <= min(512, limit)
        starts = {row[0] for row in data.sequences}
        assert tokenizer.encode("<extra_id_0>")[0] in starts  # chats go through the template


def test_built_in_texts_are_said_first_and_last(tmp_path: Path) -> None:
    """A file of the user's is never taken for them, whatever its name."""
    command = [NEMOTRON, "convert", str(TRAINED), "--tp", "2", "--dtype", "fp8", "-o"]
    done = subprocess.run(
        [*command, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    with Source.open(TRAINED) as source:
        data = read_texts(None, source)
    first = done.stderr.splitlines()[0]
    assert first.startswith("note: calibrating on this project's own texts, ")
    assert f"{data.tokens:,} tokens" in first and "--calibrate" in first
    calibration = read_manifest(tmp_path / "out").calibration
    assert calibration is not None
    assert calibration.model_dump() == {
        "data": "built-in texts",
        "is_built_in": True,
        "sequences": len(data.sequences),
        "tokens": data.tokens,
    }
    own = tmp_path / "built-in texts.jsonl"
    own.write_text('{"text": "Hello"}')
    done = subprocess.run(
        [*command, str(tmp_path / "own"), "--calibrate", str(own)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "own texts" not in done.stderr
    calibration = read_manifest(tmp_path / "own").calibration
    assert calibration is not None
    assert (calibration.data, calibration.is_built_in) == (own.name, False)


def test_texts_and_messages(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "texts.jsonl"
    chat = [{"role": "user", "content": "Hi <extra_id_1>"}, {"role": "assistant", "content": "Yes"}]
    rows = [{"text": "Hello there"}, {"messages": chat}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    with Source.open(TRAINED) as source:
        data = read_texts(path, source, 6)
    expected = [tokenizer.encode("Hello there"), tokenizer.encode_chat(chat, answer_follows=False)]
    assert [list(row) for row in data.sequences] == [row[:6] for row in expected]


BAD_TEXTS = {
    '{"text": 7}\n': "expected a string, got int .*line 1",
    '{"text": "a"}\n{"txt": "b"}\n': r"neither text nor messages .*line 2\]: write",
    '{"text": "a"}\n{': "not JSON: .*line 2",
    '{"messages": [{"role": "assistant", "content": ""}]}': r"out of order.*1, messages\[0\]",
    "\n": "nothing to calibrate on",
    "": "nothing to calibrate on",
}


@pytest.mark.parametrize("content", BAD_TEXTS)
def test_texts_that_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(content)
    with pytest.raises(NemotronError, match=BAD_TEXTS[content]):
        convert(TRAINED, tmp_path / "out", options(texts=path))
    assert not (tmp_path / "out.partial").exists()


BAD_IDS = {
    "[[1, 512]]": "a token id is outside the vocabulary of 512",
    "[[-1]]": "outside the vocabulary",
    "[[true]]": "not a list of lists of token ids",
    '{"a": 1}': "not a list of lists",
    "[[]]": "nothing to calibrate on",
    json.dumps([[1] * 257]): "a sequence has 257 tokens, the model 256 positions",
}


@pytest.mark.parametrize("content", BAD_IDS)
def test_ids_that_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text(content)
    with pytest.raises(NemotronError, match=BAD_IDS[content]):
        convert(NEMO, tmp_path / "out", options(ids=path))


def test_two_sources_of_scales_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match="exclude each other"):
        convert(NEMO, tmp_path / "out", options(ids=IDS, scales=IDS))


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=r"cannot use the device 'cuda'.*--devices"):
        convert(NEMO, tmp_path / "out", options(ids=IDS, devices="cuda"))
    with pytest.raises(NemotronError, match="cannot use the device 'fast'"):
        convert(NEMO, tmp_path / "out2", options(ids=IDS, devices="cpu,fast"))


def empty_parts(*sizes: int) -> list[torch.Tensor]:
    return [torch.empty(size, 2, dtype=torch.bfloat16) for size in sizes]


@pytest.mark.parametrize("sizes", [(), (3,), (2, 1)])
def test_hidden_states_are_loaded_only_when_whole(sizes: tuple[int, ...], tmp_path: Path) -> None:
    """In one part, in two and on disk; they are loaded into another division, too."""
    numbers = torch.arange(6, dtype=torch.bfloat16).reshape(3, 2)
    states = HiddenStates(tmp_path, 3, 2, empty_parts(*sizes))
    assert states.load() is None
    states.write(0, numbers[:2])
    states.write(2, numbers[2:])
    states.commit({"layers": ["one"]}, save=True)
    states.write(0, -numbers[:2])  # the next layer's, which is not committed
    for other_sizes in ((), (3,), (1, 2)):
        again = HiddenStates(tmp_path, 3, 2, empty_parts(*other_sizes))
        state = again.load()
        assert state is not None
        assert state["layers"] == ["one"]
        for token in range(3):
            assert again.read(token, token + 1).tolist() == numbers[token : token + 1].tolist()
    assert HiddenStates(tmp_path, 4, 2, empty_parts(4)).load() is None
    os.truncate(tmp_path / hidden_states.FILE_NAMES[state["current"]], 5)
    assert HiddenStates(tmp_path, 3, 2, empty_parts(*sizes)).load() is None


def test_states_of_an_earlier_version_are_not_loaded(tmp_path: Path) -> None:
    states = HiddenStates(tmp_path, 3, 2, empty_parts(3))
    states.commit({"layers": []}, save=True)
    assert states.load() is not None
    path = tmp_path / hidden_states.STATE_NAME
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    assert states.load() is None


def test_snapshots_take_a_twentieth_of_the_time_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, *(59.0, 60.0), *(60.0, 70.0), *(269.0, 270.0)])
    monkeypatch.setattr(hidden_states.time, "monotonic", lambda: next(clock))
    states = HiddenStates(tmp_path, 3, 2, empty_parts(3))
    assert [states.should_save, states.should_save] == [False, True]
    states.commit({}, save=True)  # takes 10 s, so the next is 200 s later
    assert [states.should_save, states.should_save] == [False, True]


def test_a_compressed_archive_is_decompressed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(unpack(tmp_path / "in"), tmp_path / "model.nemo", "w:gz")
    expected = convert(NEMO, tmp_path / "expected", options(ids=IDS))
    size = len(gzip.decompress(path.read_bytes()))
    read = gzip.GzipFile.read
    decompressed: list[int] = []

    def counting(self: gzip.GzipFile, count: int = -1) -> bytes:
        data = read(self, count)
        decompressed.append(len(data))
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    manifest = convert(path, tmp_path / "out", options(ids=IDS))
    assert sum(decompressed) == size
    weights = [name for name in expected.files if name.endswith(".safetensors")]
    assert weights and all(manifest.files[n] == expected.files[n] for n in weights)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("place", [0.3, 0.9])
def test_a_damaged_compressed_archive_is_refused_first(place: float, tmp_path: Path) -> None:
    path = pack(unpack(tmp_path / "in"), tmp_path / "model.nemo", "w:gz")
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(NemotronError, match=r"cannot decompress: .*copy it again"):
        convert(path, tmp_path / "out", options(ids=IDS))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "model.nemo"]


def test_bf16_has_nothing_to_calibrate(tmp_path: Path) -> None:
    command = [NEMOTRON, "convert", str(unpack(tmp_path / "in"))]
    command += ["-o", str(tmp_path / "out"), "--scales", str(IDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing to calibrate in BF16: add --dtype fp8" in done.stderr


def test_memory_without_limit(tmp_path: Path) -> None:
    arguments = ConvertArguments([NEMO], tmp_path / "out", dtype="fp8", calibrate_memory=math.inf)
    assert conversion_options(arguments).calibration.memory > 1 << 60
