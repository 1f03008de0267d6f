"""The scales of an FP8 conversion, from a new calibration or an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemotron_convert.calibration.amax import weight_amaxes
from nemotron_convert.calibration.data import CalibrationData, read_ids, read_texts
from nemotron_convert.calibration.options import CALIBRATION_NAME, CalibrationOptions
from nemotron_convert.calibration.record import Calibration, read_calibration
from nemotron_convert.source.nemo import Source
from nemotron_convert.target import journal
from nemotron_convert.target.fp8 import Scales
from nemotron_convert.team import Team
from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest


class Calibrator:
    """Source of the scales, with its input files read and checked.

    Raises `NemotronError` if the options contradict each other, a file is not valid, or there are
    fewer sequences than processes.
    """

    def __init__(self, source: Source, options: CalibrationOptions, team: Team) -> None:
        if sum(map(bool, (options.scales, options.texts, options.ids))) > 1:
            raise NemotronError(
                "--calibrate, --calibrate-ids and --scales exclude each other",
                remedy="give one of them",
            )
        self._source, self._options, self._team = source, options, team
        self._input: Calibration | CalibrationData
        if options.scales:
            self._input = read_calibration(options.scales, source.config)
            return
        if options.ids:
            self._input = read_ids(options.ids, source)
        else:
            self._input = read_texts(options.texts, source, options.length)
        if len(self._input.sequences) < team.size:
            raise NemotronError(
                f"{len(self._input.sequences)} sequences cannot be shared out over {team.size} "
                "processes",
                remedy="give more texts or start fewer processes",
            )

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of the input that decides the scales."""
        if isinstance(self._input, CalibrationData):
            return self._input.sha256
        return text_digest(self._input.model_dump_json())

    @property
    def tokens(self) -> int:
        """Number of tokens that a calibration runs, 0 if an earlier calibration is used."""
        return self._input.tokens if isinstance(self._input, CalibrationData) else 0

    @property
    def sequences(self) -> Sequence[Sequence[int]]:
        """Token ids that a calibration runs, none if an earlier calibration is used."""
        return self._input.sequences if isinstance(self._input, CalibrationData) else ()

    @property
    def built_in_tokens(self) -> int:
        """Number of tokens if it calibrates on the project's own texts, 0 otherwise."""
        return 0 if self._options.texts or self._options.ids else self.tokens

    @property
    def is_of_another_model(self) -> bool:
        """Whether the scales come from an earlier calibration of other weights."""
        if isinstance(self._input, CalibrationData):
            return False
        return self._input.source != journal.source_digest(self._source)

    def scales(self, folder: Path, jobs: int | None, *, fp8_kv_cache: bool) -> Scales:
        """Return all scales and leave a `calibration.json` in `folder`.

        Calibrates unless there is an earlier calibration, given by the user or left in `folder` by
        a run that is being resumed. `jobs` is the number of threads that read weights.
        """
        team = self._team
        digest = team.broadcast(journal.source_digest(self._source) if team.is_leader else None)
        if isinstance(self._input, Calibration):
            calibration = self._input
        else:
            calibration = self._calibrate(self._input, folder, digest)
        if team.is_leader:
            calibration.write(folder / CALIBRATION_NAME)
        if calibration.source == digest:
            weights = calibration.weight_amaxes
        else:  # another copy of the model: the inputs' amax are valid, the weights' are read again
            weights = weight_amaxes(self._source, jobs, team)
        return calibration.scales(weights, fp8_kv_cache=fp8_kv_cache)

    def _calibrate(self, data: CalibrationData, folder: Path, digest: str) -> Calibration:
        finished = folder / CALIBRATION_NAME
        if self._team.broadcast(finished.exists()):
            return read_calibration(finished, self._source.config)
        # Imported here because torch takes seconds to load and nothing else needs it.
        from nemotron_convert.calibration.calibration_pass import CalibrationPass  # noqa: PLC0415

        state_folder = folder / journal.FOLDER / "calibration"
        calibration_pass = CalibrationPass(
            self._source, data.sequences, state_folder, self._options, self._team
        )
        return Calibration(
            model=self._source.archive.path.name,
            source=digest,
            data=data.name,
            data_sha256=data.sha256,
            sequences=len(data.sequences),
            tokens=data.tokens,
            layers=calibration_pass.run(),
        )
