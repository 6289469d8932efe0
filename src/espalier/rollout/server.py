"""A vLLM server that samples in place of the policy here, and is given the policy's weights before each rollout.

It is spoken to by HTTP alone: ``/v1/completions`` with token ids in and out, ``/v1/load_lora_adapter`` for adapters, and
``/collective_rpc`` for whole weights, which the server reads again from the folder that it was started with. So it may run
on other machines that see the same disk.

P prompts, C copies of each.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from espalier.errors import UserError
from espalier.models.sampling.generate import Completion, Sampling

AT_A_TIME = 64
"""Requests that wait for the server together; it makes its own batches of them."""


@dataclass
class SamplingServer:
    """A server and what it samples from at present.

    Attributes:
        url: without ``/v1``, such as ``http://gpu7:8000``.
        seconds: that a request may take.
        model: the name under which the server knows the weights that are asked; found by `ready`.
    """

    url: str
    seconds: float = 600.0
    model: str = ""
    _base: str = field(default="", repr=False)
    _adapter: str = field(default="", repr=False)

    def ready(self) -> None:
        """Find out that it runs, and what its model is called.

        Raises:
            UserError: it cannot be reached, or is no such server.
        """
        listed = self._ask("/v1/models")
        try:
            self._base = self.model = str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"rollout_server: {self.url} answers, but not as vLLM does at /v1/models: {str(listed)[:200]}. Check the address."
            ) from error

    def load_adapter(self, folder: str, number: int) -> None:
        """Let it sample from the base with this adapter; the one before is dropped."""
        name = f"espalier-{number}"
        self._ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        if self._adapter:
            self._ask("/v1/unload_lora_adapter", {"lora_name": self._adapter})
        self.model = self._adapter = name

    def reload(self) -> None:
        """Let it read the weights again from its folder, and forget what it has computed with the old ones."""
        self._ask("/collective_rpc", {"method": "reload_weights"})
        self._ask("/reset_prefix_cache", {})

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, copies: int, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """``result[i][c]`` is copy c of prompt i, as `models.sampling.generate.sample` gives it.

        With ``sampling.likeliest`` the last copy of each prompt is the likeliest answer. A server does not promise the same
        answers for the same seed when other requests run beside it.

        Raises:
            UserError: a request fails, or an answer has no token ids or logprobs.
        """
        jobs: list[tuple[int, dict[str, Any]]] = []
        drawn = copies - 1 if sampling.likeliest else copies
        for at, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            common = {
                "model": self.model,
                "prompt": list(prompt),
                "max_tokens": sampling.max_new_tokens,
                "logprobs": 0,
                "return_token_ids": True,
                "stop_token_ids": list(sampling.stop),
                "skip_special_tokens": False,
            }
            if drawn:
                how = {"n": drawn, "temperature": sampling.temperature, "seed": seed % 2**31}
                jobs.append((at, {**common, **how}))
            if sampling.likeliest:
                jobs.append((at, {**common, "n": 1, "temperature": 0.0}))
        found: list[list[Completion]] = [[] for _ in prompts]
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            replies = pool.map(lambda job: self._ask("/v1/completions", job[1]), jobs)
            for (at, _), reply in zip(jobs, replies, strict=True):
                choices = sorted(reply["choices"], key=lambda choice: choice.get("index", 0))
                found[at] += [self._completion(choice, sampling) for choice in choices]
        return found

    def _completion(self, choice: dict[str, Any], sampling: Sampling) -> Completion:
        tokens = choice.get("token_ids")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if not isinstance(tokens, list) or not isinstance(logprobs, list) or len(tokens) != len(logprobs):
            raise UserError(
                f"rollout_server: {self.url} gives answers without the ids and logprobs of their tokens, which vLLM does "
                "from 0.10.2 on (return_token_ids). Update it."
            )
        ended = bool(tokens) and tokens[-1] in sampling.stop
        if choice.get("finish_reason") == "stop" and not ended:
            raise UserError(
                f"rollout_server: {self.url} ended an answer at none of the run's end tokens {list(sampling.stop)}, so that it "
                "would be learned from as one without an end. Start it with the run's own tokenizer and "
                "--generation-config vllm."
            )
        return Completion([int(t) for t in tokens], [float(x) for x in logprobs], ended)

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            said = error.read(300).decode("utf-8", "replace")
            raise UserError(
                f"rollout_server: {self.url}{path} answers {error.code} ({said}). {_CURES.get(path, '')} The last checkpoint "
                "is kept."
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(
                f"rollout_server: {self.url}{path} cannot be asked ({error}). Start vLLM, or check the address; the last "
                "checkpoint is kept."
            ) from error
        try:
            return json.loads(text) if text.strip() else {}
        except json.JSONDecodeError:
            return {}


_CURES = {
    "/v1/load_lora_adapter": "Start it with --enable-lora --max-loras 2 and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.",
    "/collective_rpc": "Start it with VLLM_SERVER_DEV_MODE=1.",
    "/reset_prefix_cache": "Start it with VLLM_SERVER_DEV_MODE=1.",
}
