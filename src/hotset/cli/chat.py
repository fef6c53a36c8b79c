"""`hotset chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from hotset.cli.chat_input import Entry, Input
from hotset.cli.conversation import Conversation, obey
from hotset.cli.options import ModelArgument, RunFlags, SamplingFlags, takes
from hotset.cli.text import note
from hotset.errors import InputError, ModelError, UsageError


@takes(engine=RunFlags, sampling=SamplingFlags)
def chat(
    model: ModelArgument,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message.")] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print speed, neurons, reads, bound and memory after each answer.")
    ] = False,
    *,
    engine: RunFlags,
    sampling: SamplingFlags,
) -> None:
    """Talk with a model. /help lists commands; Ctrl-C stops an answer; twice, or Ctrl-D, leaves."""
    from hotset.cli.load import load_model
    from hotset.params import SamplingParams
    from hotset.tools.resolve import cache_dir

    SamplingParams(**sampling.arguments())  # bad values are refused before the model is loaded
    with load_model(model, engine) as llm, Input(cache_dir() / "chat_history") as source:
        if not llm.tokenizer.has_chat_template:
            raise ModelError(
                f"{model} has no chat template, so it is no chat model; continue text with `hotset run {model}`"
            )
        conversation = Conversation(llm, sampling.arguments(), show_stats=stats)
        conversation.set_system(system or "")
        while not conversation.ended and (entry := source.message()) is not None:
            _turn(conversation, entry)


def _turn(chat: Conversation, entry: Entry) -> None:
    """One message: a command, or a question to answer. The person's mistakes are told and the conversation goes on."""
    try:
        if entry.plain and entry.text.startswith("/"):
            note(obey(entry.text.strip(), chat))
        else:
            chat.answer(entry.text)
    except (InputError, UsageError) as error:
        note(f"hotset: {error}")
