"""The verbs `demo` and `chat`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemotron_core.command_options import takes

if TYPE_CHECKING:
    from nemotron_client.client import Client
    from nemotron_client.openai_chat import OpenAIChat


def demo(
    folder: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the checkpoint and the engine.")
    ] = Path("demo"),
    leave: Annotated[
        bool, typer.Option("--exit", help="End after the answers instead of serving on.")
    ] = False,
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Take other ports in place of those in use.")
    ] = False,
) -> None:
    """Go the whole way with a tiny model: inspect, convert, build, serve, ask."""
    from nemotron_cli.demo import run_demo

    run_demo(folder, leave=leave, free_ports=free_ports)


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Options of `nemotron chat`."""

    question: Annotated[
        str | None, typer.Argument(help="One question. Without it, start a conversation.")
    ] = None
    url: Annotated[
        str,
        typer.Option(
            envvar="NEMOTRON_URL",
            help="Triton's address (grpc:// or http://), or that of any OpenAI server"
            " (http:// or https://).",
        ),
    ] = "127.0.0.1:8001"
    model: Annotated[
        str | None, typer.Option(help="Model to ask, instead of the server's first one.")
    ] = None
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=["NEMOTRON_API_KEY", "OPENAI_API_KEY"],
            help="Key for the server, if it wants one.",
        ),
    ] = None
    system: Annotated[str | None, typer.Option(help="System message.")] = None
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens; 1024 if unset.")
    ] = None
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; greedy if unset.")
    ] = None
    top_p: Annotated[float | None, typer.Option(help="Nucleus of the sampling, 0 to 1.")] = None
    seed: Annotated[int | None, typer.Option(help="Seed that makes sampling repeatable.")] = None
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer. May be repeated.")
    ] = None
    timeout: Annotated[
        float | None, typer.Option(help="Longest time in seconds for one answer.")
    ] = None
    load: Annotated[
        Path | None, typer.Option(help="Conversation to go on with, as /save wrote it.")
    ] = None
    markdown: Annotated[
        bool, typer.Option(help="Draw answers as Markdown in a terminal conversation.")
    ] = True
    history: Annotated[
        bool, typer.Option(help="Keep the lines of conversations for the next one.")
    ] = True

    def open_server(self) -> Client | OpenAIChat:
        """Return a client for the server. Raises `ClientError`."""
        from nemotron_client.base_client import TEXT_MODEL
        from nemotron_client.client import Client
        from nemotron_client.openai_chat import OpenAIChat, speaks_openai
        from nemotron_client.settings import Timeouts

        if self.url.startswith(("http://", "https://")) and speaks_openai(self.url, self.api_key):
            return OpenAIChat(
                self.url, model=self.model, api_key=self.api_key, timeout=self.timeout
            )
        return Client(
            self.url,
            model=self.model or TEXT_MODEL,
            timeouts=Timeouts(total=self.timeout),
            api_key=self.api_key,
        )


@takes(ChatOptions)
def chat(options: ChatOptions) -> None:
    """Talk with the model. Without a question, each line of input is a turn."""
    import sys
    from dataclasses import replace

    from nemotron_cli.chat import answer_lines, ask, history_path, talk
    from nemotron_cli.conversation import Conversation
    from nemotron_client.exceptions import ClientError
    from nemotron_core.errors import NemotronError
    from nemotron_core.generation import Generation

    given = {
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop_words": tuple(options.stop) if options.stop else None,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        with options.open_server() as server:
            conversation = Conversation(server, Generation(), options.system)
            if options.load is not None:
                conversation.load(options.load)
            conversation.generation = replace(conversation.generation, **changes)
            if options.question is not None:
                ask(conversation, options.question)
            elif sys.stdin.isatty():
                history = history_path() if options.history else None
                talk(conversation, history=history, markdown=options.markdown)
            else:
                answer_lines(conversation)
    except ClientError as error:
        raise NemotronError(str(error), where=options.url) from error
