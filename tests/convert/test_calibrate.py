"""Tests of calibration: its data, its hidden states and how it is resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemotron_convert.calibration import hidden_states
from nemotron_convert.calibration.calibration_pass import CalibrationPass
from nemotron_convert.calibration.data import read_ids, read_texts
from nemotron_convert.calibration.options import CalibrationOptions
from nemotron_convert.calibration.record import CALIBRATION_NAME
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.layout import Dtype, Precision
from nemotron_convert.target.manifest import changed_files, read_manifest
from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer
from tests.convert.nemo import GOLDEN, NEMO, unpack
from tests.convert.test_mpi import mpirun
from tests.tiny_nemotron.nemo_file import NEMO as TRAINED
from tests.tiny_nemotron.reference import load_hf_model

IDS = GOLDEN / "calibration_ids.json"
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
hidden_states.SNAPSHOT_SECONDS = 0.0
original = CalibrationPass._run_layer
def run_layer(self, layer, report):
    if layer == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, layer, report)
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

    def recording(self: CalibrationPass, layer: int, report: object) -> object:
        computed_layers.append(layer)
        return run_layer(self, layer, report)

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
        assert data.name == "calibration_texts.jsonl"
        assert len(data.sequences) >= 30
        limit = source.config.max_positions
        assert max(map(len, data.sequences)) <= min(512, limit)
        starts = {row[0] for row in data.sequences}
        assert tokenizer.encode("<extra_id_0>")[0] in starts  # chats go through the template


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
    with pytest.raises(NemotronError, match=r"cannot use the device 'cuda'.*--device"):
        convert(NEMO, tmp_path / "out", options(ids=IDS, device="cuda"))
    with pytest.raises(NemotronError, match="cannot use the device 'fast'"):
        convert(NEMO, tmp_path / "out2", options(ids=IDS, device="fast"))


def test_hidden_states_are_loaded_only_when_whole(tmp_path: Path) -> None:
    import numpy as np

    words = np.arange(6, dtype=np.uint16).reshape(3, 2)
    for in_memory in (True, False):
        folder = tmp_path / str(in_memory)
        states = hidden_states.HiddenStates(folder, 3, 2, in_memory=in_memory)
        assert states.load() is None
        states.write(0, words)
        states.commit({"layers": ["one"]}, save=True)
        states.write(1, words[:2])
        again = hidden_states.HiddenStates(folder, 3, 2, in_memory=in_memory)
        state = again.load()
        assert state is not None
        assert state["layers"] == ["one"]
        assert again.read(0, 3).tolist() == words.tolist()
        other = hidden_states.HiddenStates(folder, 4, 2, in_memory=in_memory)
        assert other.load() is None
        os.truncate(folder / hidden_states.FILE_NAMES[state["current"]], 5)
        assert hidden_states.HiddenStates(folder, 3, 2, in_memory=in_memory).load() is None


def test_bf16_has_nothing_to_calibrate(tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("nemotron")),
        "convert",
        str(unpack(tmp_path / "in")),
    ]
    command += ["-o", str(tmp_path / "out"), "--scales", str(IDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing to calibrate in BF16: add --dtype fp8" in done.stderr
