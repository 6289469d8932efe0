"""What may stand in a request; a key that is not honoured is refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from espalier.serve.settings import MOST_ALTERNATIVES, MOST_CHOICES

Said = Annotated[str, StringConstraints(min_length=1)]
Probability = Annotated[float, Field(ge=1e-6, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
StopTexts = Annotated[list[Said], Field(max_length=16)]


class Body(BaseModel):
    """Exactly these keys."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream ends with."""

    include_usage: bool = False


class SampledBody(Body):
    """What all that write an answer have."""

    model: str = Field(default="", description="A name of /v1/models; empty is the first one.")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Said | StopTexts | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, description="Not used.")


class JsonSchema(Body):
    """A schema by OpenAI's form."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatBody(SampledBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    rank_by: Said | None = Field(
        default=None, description="A reward model: the n answers come best first, each with its score."
    )


class CompletionBody(SampledBody):
    """`POST /v1/completions`."""

    prompt: (
        Said
        | Annotated[list[Said], Field(min_length=1)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[Annotated[list[int], Field(min_length=1)]], Field(min_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    echo: bool | None = Field(default=None, description="true is refused.")


class ScoreBody(Body):
    """`POST /score`: answers to one conversation, by a reward model."""

    model: str = Field(default="", description="A reward model of /v1/models; empty is the first one.")
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    answers: Annotated[list[str], Field(min_length=1, max_length=64)]


class TokenizeBody(Body):
    """`POST /tokenize`: a text as it stands, or a conversation in the model's template."""

    model: str = ""
    text: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: str = ""
    tokens: list[int]


class Round(Body):
    """An instruction and what was answered to it."""

    instruction: Said
    response: str = ""


class GenerateBody(Body):
    """`POST /generate` and `/generate/stream`: the body of ColossalAI's chat server."""

    history: Annotated[list[Round], Field(min_length=1)]
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Probability | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None


class ErrorFields(BaseModel):
    """What was found, what was wanted, what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorFields
