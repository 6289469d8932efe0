"""What the page asks for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from espalier.errors import UserError
from espalier.serve.http.bodies import Body, Penalty, Probability, Seed
from espalier.serve.http.errors import Refusal
from espalier.serve.settings import AnswerSettings
from espalier.serve.votes import Vote


class SettingsBody(Body):
    """How answers are sampled; what is left out has its default."""

    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None

    def settings(self) -> AnswerSettings:
        """As the engine takes them.

        Raises:
            Refusal: one is out of its range.
        """
        try:
            return AnswerSettings(**self.model_dump(exclude_none=True))
        except UserError as error:
            raise Refusal(400, str(error), param="settings") from None


class AskBody(Body):
    """A conversation whose last turn is answered, by one model or two."""

    models: Annotated[list[str], Field(min_length=1, max_length=2)]
    messages: list[dict[str, Any]]
    blind: bool = Field(default=False, description="Two models answer in an order of chance.")
    scorer: str = Field(default="", description="A reward model whose score stands beside each answer.")
    settings: SettingsBody = SettingsBody()


class VoteBody(Body):
    """Which of two answers is better."""

    id: str
    vote: Vote
