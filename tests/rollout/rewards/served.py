"""A judge as an HTTP server in a process of its own: this file, with LOG and DOWN as arguments.

It writes its port, then a line for each question. The first DOWN questions get an answer of 503; then an answer is
worth its length, or what it says where it says ``rate: …``.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main(log: Path, down: int) -> None:
    asked = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][0]["content"]
            asked[0] += 1
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"text": text, "key": self.headers["Authorization"]}) + "\n")
            answer = text.partition("[Answer]\n")[2].partition("\n\nGive")[0]
            if "sleep" in answer:
                time.sleep(30)
            said = answer.partition("rate: ")[2] or f"Fine. [[{min(len(answer), 10)}]]"
            self.send_response(503 if asked[0] <= down else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
