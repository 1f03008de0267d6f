"""`nemotron serve --adapter`: names that it refuses before it starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_build.engine_folder import open_engine
from nemotron_core.errors import NemotronError
from nemotron_core.family import LARGEST, aliases
from nemotron_serve.options import ServeOptions
from nemotron_serve.serve import serve


def test_the_models_own_names(engine_bf16: Path) -> None:
    model = open_engine(engine_bf16).model or LARGEST
    for name in (model, *aliases(model)):
        with pytest.raises(NemotronError, match="is the model's own name"):
            serve(ServeOptions(engine=engine_bf16, adapter=[f"{name}=folder"]))


@pytest.mark.parametrize("texts", [["polite"], ["=folder"], ["polite="], ["a=x", "a=y"]])
def test_what_names_no_adapter(texts: list[str], engine_bf16: Path) -> None:
    with pytest.raises(NemotronError, match="is no new name with a folder"):
        serve(ServeOptions(engine=engine_bf16, adapter=texts))
