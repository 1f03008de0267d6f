"""A Nemotron-4 open for reading, a `.nemo` or a Hugging Face folder, with all of its tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_convert.source.archive import Archive
from nemotron_convert.source.arrays import StoredArray
from nemotron_convert.source.chat_tokens import has_chat_tokens
from nemotron_convert.source.contents import Contents, list_tensors
from nemotron_convert.source.kind import Kind, require_whole
from nemotron_convert.source.reward_head import StoredHead
from nemotron_convert.source.tokenizer import read_tokenizer
from nemotron_convert.source.tuned_prompts import TunedPrompts, find_prompts
from nemotron_convert.tensor_map import EMBEDDING, TENSOR_MAP, TensorRule, rule_shape
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig

if TYPE_CHECKING:
    from nemotron_convert.source.adapter import Adapter
    from nemotron_convert.source.prompt_table import PromptTable


@dataclass(frozen=True)
class Source:
    """A `.nemo` in which all tensors exist with the shapes that its configuration implies."""

    contents: Contents
    vocab_size: int
    tensors: Mapping[str, StoredArray]
    """The stored arrays by Megatron's names."""
    tokenizer: bytes = field(repr=False)
    """The serialized SentencePiece model."""
    ignored: tuple[str, ...] = ()
    """Stored tensors that are left out because the user said so."""
    adapters: tuple[Adapter, ...] = ()
    """The adapters that are converted with it: those merged into `tensors`, in this order, and at
    most one P-tuning."""
    reward_head: StoredHead | None = None
    """The head of a reward model."""

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        ignore: Collection[str] = (),
        ignore_template: bool = False,
        is_lenient: bool = False,
        scratch: Path | None = None,
        adapters: Sequence[Path] = (),
    ) -> Source:
        """Open a `.nemo` or a Hugging Face folder and check it, without reading the weights.

        With `scratch`, a folder, a compressed archive is decompressed into it, once.
        `ignore` are patterns of the names of tensors that may be left out, and with
        `ignore_template` a chat template may be another. If `is_lenient`, the caller judges
        `unknown`, `contents.settings.faults` and `chat.refusal`. The `adapters` are merged
        into its tensors. Raises `NemotronError` if something is missing, is not understood or has
        a wrong shape, or an adapter does not fit.
        """
        with ExitStack() as stack:
            contents = stack.enter_context(Contents.open(path, scratch=scratch))
            source = cls.of(contents, ignore=ignore, is_lenient=is_lenient)
            judges_template = not (is_lenient or ignore_template)
            if not adapters:
                if judges_template:
                    source.require_template()
                stack.pop_all()
                return source
            # Loaded by the conversions that need them.
            from nemotron_convert.source.adapter import Adapter  # noqa: PLC0415
            from nemotron_convert.source.merged_array import merge  # noqa: PLC0415

            opened = [
                stack.enter_context(Adapter.open(adapter, source.config, scratch=scratch))
                for adapter in adapters
            ]
            _check_prompts(opened, source)
            tensors = merge(source.tensors, opened)
            merged = replace(source, tensors=tensors, adapters=tuple(opened))
            if judges_template:
                merged.require_template()
            stack.pop_all()
            return merged

    @classmethod
    def of(
        cls, contents: Contents, *, ignore: Collection[str] = (), is_lenient: bool = False
    ) -> Source:
        """Return the checked source of `open`; it takes over the open archive."""
        path = contents.archive.path
        require_whole(contents.kind, path, contents.base)
        if not is_lenient:
            contents.settings.require_known(path)
        tensors = {rule.source: contents.tensors.open(rule) for rule in TENSOR_MAP}
        vocab_size = tensors[EMBEDDING].shape[0]
        for rule in TENSOR_MAP:
            _check_shape(tensors[rule.source], rule, contents.settings.model, vocab_size)
        head = None
        if contents.kind is Kind.REWARD:
            head = StoredHead.open(contents.tensors.open, contents.settings.model.hidden_size)
        ignored = _ignored(contents, ignore)
        unknown = contents.unknown(ignore)
        if unknown and not is_lenient:
            raise _not_understood(unknown, path)
        tokenizer = read_tokenizer(contents.archive, contents.settings, vocab_size)
        return cls(contents, vocab_size, tensors, tokenizer, ignored, reward_head=head)

    @property
    def archive(self) -> Archive:
        return self.contents.archive

    @property
    def layout(self) -> str:
        """Storage format of the weights; see `Contents`."""
        return self.contents.layout

    @property
    def config(self) -> ModelConfig:
        return self.contents.settings.model

    @property
    def all_tensors(self) -> dict[str, StoredArray]:
        """The tensors, and those of a reward model's head."""
        head = self.reward_head
        return {**self.tensors, **(head.tensors if head else {})}

    @property
    def prompt_table(self) -> PromptTable | None:
        """The vectors that stand before every prompt, if there is a P-tuning."""
        return next((a.prompt for a in self.adapters if a.prompt is not None), None)

    @cached_property
    def chat(self) -> TunedPrompts:
        """On what prompts the model was tuned, or else the last adapter that names them."""
        for contents in (*(adapter.contents for adapter in reversed(self.adapters)), self.contents):
            if contents is self.contents or has_chat_tokens(contents.settings.raw):
                break
        is_reward = self.reward_head is not None
        return find_prompts(contents, self.tokenizer, is_reward=is_reward)

    def require_template(self) -> None:
        """Raise `NemotronError` if the model expects prompts that it cannot be given."""
        if self.chat.refusal:
            raise NemotronError(
                self.chat.refusal,
                where=self.archive.path,
                remedy="the model was tuned on other prompts; --ignore-template converts it for "
                "use with raw prompts",
            )

    @property
    def nbytes(self) -> int:
        """Size in bytes of all tensors together, as they are stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """The types in which the tensors are stored, such as "BF16"."""
        return tuple(sorted({tensor.dtype.value for tensor in self.tensors.values()}))

    def identity(self) -> Iterator[str]:
        """Yield lines that change whenever a file or setting does that decides the result."""
        yield repr(self.config)
        yield self.layout
        yield from self.contents.identity()
        if self.chat.chat_format is not None:
            yield repr(self.chat.chat_format)
        for adapter in self.adapters:
            yield f"adapter {adapter.name}"
            yield from adapter.contents.identity()

    def require_unchanged(self) -> None:
        """Raise `NemotronError` if a file that was read has changed since it was opened."""
        for contents in (self.contents, *(adapter.contents for adapter in self.adapters)):
            contents.require_unchanged()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_exception: object) -> None:
        for contents in (self.contents, *(adapter.contents for adapter in self.adapters)):
            contents.archive.close()


def _check_prompts(adapters: Sequence[Adapter], source: Source) -> None:
    """Raise `NemotronError` if the model cannot have the P-tunings among its adapters."""
    prompts = [adapter for adapter in adapters if adapter.prompt is not None]
    if len(prompts) > 1:
        raise NemotronError(
            f"{len(prompts)} P-tunings: a model has the virtual tokens of one",
            where=prompts[1].contents.archive.path,
        )
    for adapter in prompts:
        assert adapter.prompt is not None
        if source.reward_head is not None:
            raise NemotronError(
                "a reward model has no virtual tokens",
                where=adapter.contents.archive.path,
                remedy="name the model that this P-tuning was trained on",
            )
        count = len(adapter.prompt.vectors)
        if count >= source.config.max_positions:
            raise NemotronError(
                f"{count} virtual tokens take all of the {source.config.max_positions} positions",
                where=adapter.contents.archive.path,
            )


def _ignored(contents: Contents, patterns: Collection[str]) -> tuple[str, ...]:
    """Return the tensors that the user's patterns leave out.

    Raises `NemotronError` if a pattern leaves out nothing, because it may be misspelt.
    """
    unused = sorted(contents.unknown())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in unused):
            raise NemotronError(
                f"{pattern} matches no tensor that is not understood",
                where="--ignore-tensor",
                remedy="`nemotron inspect` lists these tensors",
            )
    return tuple(name for name in unused if any(fnmatchcase(name, p) for p in patterns))


def _not_understood(unknown: Mapping[str, str], path: Path) -> NemotronError:
    return NemotronError(
        f"Nemotron-4 has no such tensors: {list_tensors(unknown)}",
        where=path,
        remedy="this is another model, or tuned in a way that is not carried out; --ignore-tensor "
        "PATTERN leaves tensors out, which changes what the model answers unless they were unused",
    )


def _check_shape(
    tensor: StoredArray, rule: TensorRule, config: ModelConfig, vocab_size: int
) -> None:
    """Raise `NemotronError` if the tensor has another shape than its rule has for this model."""
    shape = rule_shape(rule, config, vocab_size, tp=1)
    expected = (shape.rows, shape.columns) if len(shape.rank_shape) == 2 else (shape.columns,)
    if rule.stacked:
        expected = (config.num_layers, *expected)
    if tensor.shape != expected:
        raise NemotronError(
            f"tensor {rule.source} has shape {list(tensor.shape)}, the configuration asks for "
            f"{list(expected)}",
            where=tensor.archive.path,
        )
