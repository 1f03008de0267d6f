"""The verb `chat`."""

from __future__ import annotations

from typing import Annotated

import typer


def chat(
    question: Annotated[
        str | None, typer.Argument(help="One question. Without it, start a conversation.")
    ] = None,
    url: Annotated[
        str, typer.Option(envvar="NEMOTRON_URL", help="Triton's address: grpc:// or http://.")
    ] = "127.0.0.1:8001",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 1024,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; greedy if unset.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus of the sampling, 0 to 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed that makes sampling repeatable.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer. May be repeated.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Longest time in seconds for one answer.")
    ] = None,
) -> None:
    """Talk with the model. Without a question, each line of input is a turn."""
    from nemotron_cli.chat import Conversation, ask, talk
    from nemotron_client.client import Client
    from nemotron_client.exceptions import ClientError
    from nemotron_client.settings import Timeouts
    from nemotron_core.errors import NemotronError
    from nemotron_core.generation import Generation

    generation = Generation(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop_words=tuple(stop or ()),
    )
    try:
        with Client(url, timeouts=Timeouts(total=timeout)) as client:
            conversation = Conversation(client, generation, system)
            if question is None:
                talk(conversation)
            else:
                ask(conversation, question)
    except ClientError as error:
        raise NemotronError(str(error), where=url) from error
