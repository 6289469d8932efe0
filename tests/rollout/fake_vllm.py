"""A server with the part of vLLM's HTTP that rollouts use, over transformers: ``python fake_vllm.py FOLDER``.

It says its port on the first line of stdout. ``--stale`` acknowledges new weights and goes on with the old ones.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

FOLDER, STALE = sys.argv[1], "--stale" in sys.argv
LOCK = Lock()


def loaded() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


MODELS: dict[str, Any] = {FOLDER: loaded()}
SEEN: list[str] = []


def completions(body: dict[str, Any]) -> dict[str, Any]:
    model, ids = MODELS[body["model"]], body["prompt"]
    assert body["return_token_ids"] and body["logprobs"] == 0
    torch.manual_seed(body.get("seed", 0))
    choices = []
    for index in range(body["n"]):
        tokens: list[int] = []
        logprobs: list[float] = []
        reason = "length"
        while len(tokens) < body["max_tokens"]:
            with torch.no_grad():
                logits = model(torch.tensor([ids + tokens])).logits[0, -1].float()
            said = (logits / (body["temperature"] or 1.0)).log_softmax(-1)
            token = int(said.argmax()) if not body["temperature"] else int(torch.multinomial(said.exp(), 1))
            tokens.append(token)
            logprobs.append(float(said[token]))
            if token in body["stop_token_ids"]:
                reason = "stop"
                break
        choices.append(
            {
                "index": index,
                "token_ids": tokens,
                "logprobs": {"token_logprobs": logprobs},
                "finish_reason": reason,
            }
        )
    return {"choices": choices[::-1]}


def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    SEEN.append(path)
    if path == "/v1/models":
        return 200, {"data": [{"id": FOLDER}]}
    if path == "/seen":
        return 200, SEEN
    if path == "/v1/completions":
        if body["model"] not in MODELS:
            return 404, {"error": f"no model {body['model']}"}
        return 200, completions(body)
    if path == "/collective_rpc" and body == {"method": "reload_weights"}:
        MODELS[FOLDER] = MODELS[FOLDER] if STALE else loaded()
        return 200, {"results": [None]}
    if path == "/v1/load_lora_adapter":
        MODELS[body["lora_name"]] = PeftModel.from_pretrained(loaded(), body["lora_path"]).eval()
        return 200, "ok"
    if path == "/v1/unload_lora_adapter":
        del MODELS[body["lora_name"]]
        return 200, "ok"
    return (200, {}) if path == "/reset_prefix_cache" else (404, {"error": "not found"})


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else {}
        with LOCK:
            code, said = answer(self.path, body)
        data = json.dumps(said).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None: ...


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
