"""Where an FP8 conversion has its scales from: a calibration of now or of before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemotron_convert.calibration.amax import weight_amaxes
from nemotron_convert.calibration.data import (
    DEFAULT_LENGTH,
    CalibrationData,
    read_ids,
    read_texts,
)
from nemotron_convert.calibration.record import CALIBRATION_NAME, Calibration, read_calibration
from nemotron_convert.source.nemo import Source
from nemotron_convert.target import journal
from nemotron_convert.target.fp8 import Scales
from nemotron_convert.team import Team
from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest


@dataclass(frozen=True)
class Scaling:
    """At most one of `scales`, `texts` and `ids`; with none, the project's own texts."""

    scales: Path | None = None
    """An earlier `calibration.json`."""
    texts: Path | None = None
    ids: Path | None = None
    length: int = DEFAULT_LENGTH
    """Tokens of each text."""
    device: str = "cpu"
    """torch's name for where to calibrate."""
    memory: int = 8 << 30
    """Bytes of hidden states that a process keeps in memory; more go to the disk."""


OWN_TEXTS = Scaling()


class Calibrator:
    """A Scaling whose files were read and found right."""

    def __init__(self, source: Source, scaling: Scaling, team: Team) -> None:
        given = [path for path in (scaling.scales, scaling.texts, scaling.ids) if path]
        if len(given) > 1:
            raise NemotronError(
                "--calibrate, --calibrate-ids and --scales exclude each other",
                remedy="give one of them",
            )
        self._source, self._scaling, self._team = source, scaling, team
        self._given: Calibration | None = None
        self._data: CalibrationData | None = None
        if scaling.scales:
            self._given = read_calibration(scaling.scales, source.config)
        elif scaling.ids:
            self._data = read_ids(scaling.ids, source)
        else:
            self._data = read_texts(scaling.texts, source, scaling.length)
        if self._data and len(self._data.sequences) < team.size:
            raise NemotronError(
                f"{len(self._data.sequences)} sequences cannot be shared out over {team.size} "
                "processes",
                remedy="give more texts or start fewer processes",
            )

    @property
    def identity(self) -> str:
        """What decides the scales."""
        if self._data:
            return self._data.sha256
        assert self._given is not None
        return text_digest(self._given.model_dump_json())

    def scales(self, folder: Path, jobs: int, *, fp8_kv_cache: bool) -> Scales:
        """Calibrate if need be; `folder` then has a `calibration.json` to take up."""
        digest = self._team.broadcast(
            journal.source_digest(self._source) if self._team.is_leader else None
        )
        calibration = self._given or self._calibrate(folder, digest)
        if self._team.is_leader:
            calibration.write(folder / CALIBRATION_NAME)
        if calibration.source == digest:
            weights = calibration.weight_amaxes
        else:  # of another copy of the model: the inputs' amax hold, the weights' are looked up
            weights = weight_amaxes(self._source, jobs, self._team)
        return calibration.scales(weights, fp8_kv_cache=fp8_kv_cache)

    def _calibrate(self, folder: Path, digest: str) -> Calibration:
        done = folder / CALIBRATION_NAME
        if self._team.broadcast(done.exists()):
            return read_calibration(done, self._source.config)
        # Here, for torch takes seconds to load and is wanted for nothing else.
        from nemotron_convert.calibration.calibration_pass import calibrate  # noqa: PLC0415

        assert self._data is not None
        return calibrate(
            self._source,
            digest,
            self._data,
            folder / journal.FOLDER / "calibration",
            self._team,
            device=self._scaling.device,
            memory=self._scaling.memory,
        )
