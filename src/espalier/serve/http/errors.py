"""What goes wrong, in the form in which OpenAI's clients read it."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error",
         415: "invalid_request_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error",
         504: "timeout_error"}  # fmt: skip


class Refusal(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: what was found, what was wanted, what to do.
        param: the key that is at fault, where there is one.
        code: one word for programs.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        again: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {"Retry-After": str(max(1, round(again)))} if again else {}

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's object."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """As an answer."""
        return Json(self.body, self.status, self.headers)


class Json(Response):
    """JSON whose letters stay as they are; half a character, which no text has, becomes a mark."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """See `Response`."""
        return as_json(content).encode("utf-8", "replace")


def as_json(content: Any) -> str:
    """One line, without spaces."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
