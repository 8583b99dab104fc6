"""The work of each kind of request on the engine's thread."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgeglm.errors import EdgeglmError, UnsupportedError
from edgeglm.runtimes.core.grammars import Choice, GrammarText
from edgeglm.runtimes.core.prompt import Prompt, text_prompt
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampling
from edgeglm.runtimes.serve.answers import Made, Settings, answer
from edgeglm.runtimes.serve.errors import TOO_LONG, ApiError
from edgeglm.runtimes.serve.jobs import Job
from edgeglm.runtimes.serve.roles import in_form
from edgeglm.runtimes.serve.schedule import Kind
from edgeglm.runtimes.serve.schema import ChatRequest, Common, DetokenizeRequest, TextRequest, TokenizeRequest
from edgeglm.runtimes.serve.tool_grammar import tool_grammar
from edgeglm.runtimes.serve.tools import Tool, form_of, read_tools, template_text
from edgeglm.runtimes.text.messages import PICTURES, Message, normalize, parts, texts

Work = Callable[[Runner, Job], None]
# What an agent's answer ends with. Clients take it for a part of the action, so it ends the answer before it is text.
ANSWER_END = "</answer>"
# Fields that a bundle's own settings have too.
SAMPLED = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
)  # fmt: skip
SEED_BITS = 32
MAX_CHARACTERS = 64  # of a prompt for each token of the window
# Types of a message's parts that are sound.
SOUNDS = {"input_audio", "audio", "audio_url"}


def chat_work(asked: ChatRequest) -> Work:
    """Return the work of a chat completion."""

    def work(runner: Runner, job: Job) -> None:
        tools = asked.callable_tools
        shown = asked.tools if tools else None
        prompt = read_messages(runner, asked.messages, shown, variables(asked))
        stops = asked.stops
        grammar = _tool_grammar(asked, tools, runner) if tools else _grammar(asked, runner)
        if (grammar is None or (tools and not asked.must_call)) and runner.chat.tokenizer.token_to_id(
            ANSWER_END
        ) is not None:
            stops = (*stops, ANSWER_END)
        limit = asked.max_completion_tokens or asked.max_tokens
        scores = (asked.top_logprobs or 0) if asked.logprobs else None
        settings = replace(
            _settings(asked, runner),
            stops=stops,
            limit=limit,
            top_logprobs=scores,
            splits_reasoning=bool(asked.return_reasoning),
            grammar=grammar,
            tools=tools,
            form=form_of(template_text(runner.chat)),
        )
        answer(runner, prompt, settings, job.emit, job.check, job.between_steps)

    return work


def text_work(asked: TextRequest) -> Work:
    """Return the work of a text completion."""

    def work(runner: Runner, job: Job) -> None:
        text = _single(asked.prompt)
        check_length(runner, 1, len(text))
        if not isinstance(text, str):
            check_tokens(runner, text, "prompt")
        prompt = text_prompt(runner.chat, runner.model, text)
        settings = replace(
            _settings(asked, runner), stops=asked.stops, limit=asked.max_tokens or 16, top_logprobs=asked.logprobs
        )
        answer(runner, prompt, settings, job.emit, job.check, job.between_steps)

    return work


def tokenize_work(asked: TokenizeRequest) -> Work:
    """Return the work of ``/tokenize``."""

    def work(runner: Runner, job: Job) -> None:
        read_tools(asked.tools)
        if asked.messages is not None:
            tokens = read_messages(runner, asked.messages, asked.tools, asked.chat_template_kwargs or {}).tokens
        else:
            check_length(runner, 1, len(asked.prompt or ""))
            tokens = text_prompt(runner.chat, runner.model, asked.prompt or "").tokens if asked.prompt else []
        job.emit(Made({"count": len(tokens), "max_model_len": runner.window.tokens, "tokens": tokens}))

    return work


def detokenize_work(asked: DetokenizeRequest) -> Work:
    """Return the work of ``/detokenize``."""

    def work(runner: Runner, job: Job) -> None:
        check_tokens(runner, asked.tokens, "tokens")
        job.emit(Made({"prompt": runner.chat.tokenizer.decode(asked.tokens, skip_special_tokens=False)}))

    return work


def read_messages(
    runner: Runner, messages: Sequence[Message], tools: Sequence[Any] | None, names: dict[str, Any]
) -> Prompt:
    """Return the prompt of a client's messages, none of which may name a file of this machine.

    Args:
        runner: Writes the prompt.
        messages: The client's messages.
        tools: The functions that the model may call, for its chat template.
        names: Further names of the template.

    Raises:
        ApiError: They are too long, or there are tools, and the chat template takes none.
        EdgeglmError: As `Runner.prompt`.
    """
    said = in_form(_asked(normalize(messages, files=False)), runner.chat, template_text(runner.chat))
    check_length(runner, len(said), sum(map(len, texts(said))))
    prompt = runner.prompt(said, tools=tools, variables=names)
    if not tools or prompt.tokens != (plain := runner.prompt(said, variables=names)).tokens:
        return prompt
    # GLM-4's first template looks for tools in a message of the system.
    prompt = runner.prompt([{"role": "system", "content": "", "tools": [*tools]}, *said], variables=names)
    empty = runner.prompt([{"role": "system", "content": ""}, *said], variables=names)
    if prompt.tokens in (empty.tokens, plain.tokens):
        raise ApiError(400, "the model's chat template takes no tools; leave them out", param="tools")
    return prompt


def _asked(messages: Sequence[Message]) -> list[Message]:
    """Return messages without the blank texts that clients send beside an image that is to speak for itself."""
    return [
        {**message, "content": [part for part in parts(message) if part["type"] == "image" or part["text"].strip()]}
        if any(part["type"] == "image" for part in parts(message))
        else message
        for message in messages
    ]


def check_length(runner: Runner, messages: int, characters: int) -> None:
    """Refuse what fits no prompt before seconds are spent on it.

    Args:
        runner: Of the bundle.
        messages: How many there are.
        characters: Of all of them.

    Raises:
        ApiError: There are more messages than tokens, or more characters than so many tokens ever stand for.
    """
    window = runner.window.tokens
    if messages > window or characters > window * MAX_CHARACTERS:
        why = f"there are {messages} messages of {characters} characters"
        why += f", and prompt and answer together may have {window} tokens"
        raise ApiError(400, f"{why}; shorten the messages", param="messages", code=TOO_LONG)


def check_tokens(runner: Runner, tokens: Sequence[int], param: str) -> None:
    """Refuse numbers that are no tokens; the error names the field."""
    if any(not 0 <= token < runner.model.vocabulary for token in tokens):
        raise ApiError(400, f"{param}: tokens are 0 to {runner.model.vocabulary - 1}", param=param)


def variables(asked: ChatRequest) -> dict[str, Any]:
    """Return what a chat template is told besides the conversation."""
    thinking = {} if asked.enable_thinking is None else {"enable_thinking": asked.enable_thinking}
    return {**thinking, **(asked.chat_template_kwargs or {})}


def kind_of(messages: Sequence[Message]) -> Kind:
    """Return what a client's messages hold beside text: sound before images."""
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, Mapping)]
    names = {str(part.get("type") or next(iter(part), "")) for part in parts}
    if names & SOUNDS:
        return "speech"
    return "vision" if names & {*PICTURES} else "text"


def usage_chunk(asked: Common) -> bool:
    """Return whether a stream ends with the usage."""
    return bool(asked.stream_options and asked.stream_options.include_usage)


def _settings(asked: Common, runner: Runner) -> Settings:
    given = {name: value for name in SAMPLED if (value := getattr(asked, name)) is not None}
    if given.get("top_k", 0) < 0:  # as vLLM says "all"
        given["top_k"] = 0
    seed = asked.seed if asked.seed is not None else secrets.randbits(SEED_BITS)
    sampling = replace(Sampling.of(runner.bundle.manifest.generation), **given)
    return Settings(sampling, seed % (1 << SEED_BITS), count=asked.n or 1)


def _grammar(asked: ChatRequest, runner: Runner) -> GrammarText | None:
    """Return what the request holds its answer to, if it does.

    Raises:
        ApiError: No answer can be held to it.
    """
    if (schema := asked.schema) is None:
        return None
    grammar = GrammarText("response_format", schema, is_schema=True)
    try:
        runner.grammars.find(grammar)
    except EdgeglmError as error:
        raise ApiError(400, str(error), param="response_format") from error
    return grammar


def _tool_grammar(asked: ChatRequest, tools: Mapping[str, Tool], runner: Runner) -> Choice:
    """Return what holds calls to their tools' schemas.

    Raises:
        ApiError: A call is asked for, and no answer can be held to it.
    """
    template, ends = template_text(runner.chat), runner.ends
    added = runner.chat.tokenizer.get_added_tokens_decoder().items()
    tokens = {word.content: token for token, word in added if token not in ends}
    many = asked.tool_choice in (None, "auto", "required") and asked.parallel_tool_calls is not False
    try:
        text = tool_grammar(tools, form_of(template), template, tokens, must=asked.must_call, many=many)
        if text is None:
            return "off"
        grammar = GrammarText("tools", text, is_schema=False)
        runner.grammars.find(grammar)
    except (EdgeglmError, RecursionError) as error:
        if not asked.must_call:  # as good as the model writes them
            return "off"
        param = "tool_choice" if isinstance(error, UnsupportedError) else "tools"
        raise ApiError(400, f"{param}: {error}", param=param) from error
    return grammar


def _single(prompt: str | list[str | int | list[int]]) -> str | list[int]:
    """Return the one prompt of a request.

    Raises:
        ApiError: There are several, or it is empty.
    """
    match prompt:
        case [str() | list() as only]:
            single: Any = only
        case [*tokens] if not all(isinstance(token, int) for token in tokens):
            raise ApiError(400, "prompt: one at a time; send a request for each", param="prompt")
        case _:
            single = prompt
    if not single:
        raise ApiError(400, "prompt is empty", param="prompt")
    return single  # type: ignore[no-any-return]
