"""The engine folder, which `nemotron build` writes and `nemotron serve` reads."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nemotron_build.lanes import LANES, lane_of
from nemotron_build.lanes.lane import BuildPlan
from nemotron_build.profile import NGRAM, Profile
from nemotron_convert.target.manifest import MANIFEST_NAME, read_manifest, require_no_nemo
from nemotron_core.errors import NemotronError
from nemotron_core.files import FileEntry, hash_file
from nemotron_core.folder import NotReady, check_output, new_folder
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_core.reward import ModelKind
from nemotron_core.text.chat_format import FILE_NAME as CHAT_FORMAT_NAME

ENGINE_NAME = "engine.json"


class EngineRecord(BaseModel):
    """`engine.json`: what the folder is, and the hash of each of its files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[3] = 3
    """Engines of earlier versions are refused: their CPU engine rounded positions to BF16."""
    lane: str
    kind: ModelKind = "text"
    """What the engine makes: text, or the scores of a reward model."""
    profile: Profile
    versions: dict[str, str]
    """Versions of the libraries that the engine needs, if it works with no others."""
    gpu: str | None
    """The GPU that the engine was built on, if it runs on no other kind."""
    checkpoint: str
    """SHA-256 (hex) of the checkpoint's content."""
    model: str | None = None
    """Name under which the model is served; without, the gateway has a default."""
    max_seq_len: int
    """Number of tokens of a prompt and its answer together."""
    vocab_size: int
    files: dict[str, FileEntry]


def plan_engine(checkpoint: Path, output: Path, profile: Profile) -> BuildPlan:
    """Return what `build_engine` would do.

    Raises `NemotronError` if the checkpoint does not fit the profile.
    """
    check_output(output)
    profile = _with_draft(checkpoint, profile)
    _check_kind(checkpoint, profile)
    plan = lane_of(profile).plan(checkpoint, output, profile)
    files = {*plan.files, *_text_files(checkpoint), ENGINE_NAME}
    return BuildPlan(sorted(files), plan.command)


def describe_build(checkpoint: Path, output: Path, profile: Profile) -> str:
    """Return the command that a build would run and the files that it would write.

    Raises `NemotronError` if the checkpoint does not fit the profile.
    """
    plan = plan_engine(checkpoint, output, profile)
    lines = ["# command", shlex.join(plan.command)] if plan.command else []
    return "\n".join([*lines, "# files", *(str(output / name) for name in plan.files)])


def build_engine(checkpoint: Path, output: Path, profile: Profile) -> EngineRecord:
    """Build an engine into the new folder `output`, which appears only when it is complete.

    Raises `NemotronError` if the checkpoint does not fit the profile or this machine cannot build.
    """
    profile = _with_draft(checkpoint, profile)
    lane, kind = lane_of(profile), _check_kind(checkpoint, profile)
    with new_folder(output) as folder:
        built = lane.build(checkpoint, folder, profile)
        for name in _text_files(checkpoint):
            if not (folder / name).exists():
                shutil.copyfile(checkpoint / name, folder / name)
        record = EngineRecord(
            lane=profile.lane,
            kind=kind,
            profile=profile,
            versions=lane.installed(profile) if lane.is_compiled else {},
            gpu=built.gpu,
            checkpoint=built.checkpoint,
            model=read_manifest(checkpoint).model,
            max_seq_len=built.max_seq_len,
            vocab_size=built.vocab_size,
            files={
                path.name: built.files.get(path.name) or hash_file(path)
                for path in sorted(folder.iterdir())
            },
        )
        text = record.model_dump_json(indent=2) + "\n"
        (folder / ENGINE_NAME).write_text(text, encoding="utf-8")
    return record


def _text_files(checkpoint: Path) -> list[str]:
    """Return the names of the files from which an engine's server makes tokens of texts."""
    has_format = (checkpoint / CHAT_FORMAT_NAME).exists()
    return [TOKENIZER_NAME, *([CHAT_FORMAT_NAME] if has_format else [])]


def _check_kind(checkpoint: Path, profile: Profile) -> ModelKind:
    """Return the kind of a checkpoint. Raises `NemotronError` if the lane does not serve it."""
    manifest = read_manifest(checkpoint)
    kind = manifest.kind
    if manifest.virtual_tokens and not lane_of(profile).has_virtual_tokens:
        lanes = [name for name, lane in LANES.items() if lane.has_virtual_tokens]
        raise NemotronError(
            f"this model has the {manifest.virtual_tokens} virtual tokens of a P-tuning, which the "
            f"lane {profile.lane} does not put in front of prompts",
            where=checkpoint,
            remedy=f"use a profile of the lane {' or '.join(lanes)}",
        )
    if kind not in lane_of(profile).kinds:
        lanes = [name for name, lane in LANES.items() if kind in lane.kinds]
        raise NemotronError(
            f"this is a {kind} model, which the lane {profile.lane} does not serve",
            where=checkpoint,
            remedy=f"use a profile of the lane {' or '.join(lanes)}",
        )
    if kind == "reward" and getattr(profile, "draft", None):
        raise NemotronError(
            "a reward model generates no tokens that a draft could propose",
            where="draft",
            remedy="use a profile without `draft`",
        )
    return kind


def _with_draft(checkpoint: Path, profile: Profile) -> Profile:
    """Return the profile with the absolute path of its draft.

    Raises `NemotronError` if that is no engine of the same lane with the checkpoint's vocabulary,
    or if the checkpoint has virtual tokens, which no draft knows.
    """
    draft = getattr(profile, "draft", None)
    if draft is not None and read_manifest(checkpoint).virtual_tokens:
        raise NemotronError(
            "virtual tokens (P-tuning) and a draft do not go together",
            where=checkpoint,
            remedy="use a profile without `draft`",
        )
    if draft in (None, NGRAM):
        return profile
    folder = Path(draft).resolve()
    record = open_engine(folder)
    if (record.lane, record.kind) != (profile.lane, "text"):
        raise NemotronError(
            f"this is a {record.kind} engine of the lane {record.lane}",
            where=folder,
            remedy=f"build the draft with a profile of the lane {profile.lane}",
        )
    if record.files[TOKENIZER_NAME].sha256 != hash_file(checkpoint / TOKENIZER_NAME).sha256:
        raise NemotronError(
            "the draft has another vocabulary than the checkpoint",
            where=folder,
            remedy="a draft needs the same tokenizer.model: use another model, or `draft: ngram`",
        )
    return profile.model_copy(update={"draft": str(folder)})


def reuse_or_build(checkpoint: Path, output: Path, profile: Profile) -> EngineRecord:
    """Return the record of the engine in `output`, which is built if it does not exist.

    Raises `NotReady` while another process writes the engine or the checkpoint. Raises
    `NemotronError` if `output` has an engine of another checkpoint or profile, or of libraries of
    other versions.
    """
    if not (checkpoint / MANIFEST_NAME).exists():
        require_no_nemo(checkpoint)
        raise NotReady(
            f"no {MANIFEST_NAME}: not a whole checkpoint",
            where=checkpoint,
            remedy="name a folder that `nemotron convert` has written, or --wait for it",
        )
    if not (output / ENGINE_NAME).exists():
        return build_engine(checkpoint, output, profile)
    record, profile = open_engine(output), _with_draft(checkpoint, profile)
    if record.checkpoint != read_manifest(checkpoint).content_hash:
        difference = "checkpoint"
    elif _build_settings(record.profile) != _build_settings(profile):
        difference = "profile"
    else:
        if record.versions:
            check_versions(output, record, profile)
        return record
    raise NemotronError(
        f"it was built from another {difference}",
        where=output,
        remedy="name another with -o or remove it",
    )


def _build_settings(profile: Profile) -> dict[str, object]:
    """Return the part of a profile that decides how an engine is built."""
    serve_only = {"address", "engine", "ports", "triton", "triton_args", "timeouts"}
    return {**profile.model_dump(exclude=serve_only), "request": profile.timeouts.request}


def open_engine(folder: Path) -> EngineRecord:
    """Check an engine folder and return its record. Raises `NemotronError` if a check fails."""
    path = folder / ENGINE_NAME
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise NemotronError(
            f"no {ENGINE_NAME}: not an engine",
            where=folder,
            remedy="name a folder that `nemotron build` has written",
        ) from error
    try:
        lane = _LaneOnly.model_validate_json(raw).lane
        if lane not in LANES:
            raise NemotronError(
                f"this is an engine of the lane {lane!r}, which this version does not know",
                where=folder,
                remedy=f"build one with a profile of the lane {' or '.join(LANES)}",
            )
        record = EngineRecord.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise NemotronError(
            f"{key}: {first['msg']}", where=path, remedy="build the engine again"
        ) from error
    for name, expected in record.files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != expected.size:
            raise NemotronError(
                f"{name} is missing or cut short", where=folder, remedy="build the engine again"
            )
    return record


def check_versions(folder: Path, record: EngineRecord, profile: Profile) -> None:
    """Raise `NemotronError` if the libraries are missing or others than those of the build."""
    installed = lane_of(profile).installed(profile)
    for name, built_with in record.versions.items():
        if installed.get(name) != built_with:
            raise NemotronError(
                f"built with {name} {built_with}, but {installed.get(name, 'none')} is installed",
                where=folder,
                remedy="build the engine again",
            )


class _LaneOnly(BaseModel):
    """The one field of `engine.json` that every version of this program can read."""

    lane: str
