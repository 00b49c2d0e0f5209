"""HTTP as anybody may send it, by hand."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, whole."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


def send(
    port: int,
    path: str,
    body: Any = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    raw: bytes | None = None,
) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json"} if data is not None else {}
        connection.request(method or ("GET" if data is None else "POST"), path, data, {**sent, **(headers or {})})
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read())
    finally:
        connection.close()


def chat(model: str = "toy", text: str = "count 2", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def open_chat(port: int, body: dict[str, Any]) -> socket.socket:
    """A connection on which ``body`` was sent."""
    data = json.dumps(body).encode()
    made = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json"]
    made.sendall("\r\n".join([*head, f"content-length: {len(data)}", "", ""]).encode() + data)
    return made


def whole_answer(connection: socket.socket) -> bytes:
    """Head and body of an answer that says how long it is; what there is, where the other side ends before."""
    found = b""
    while True:
        head, ends, body = found.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if ends and length is not None and len(body) >= int(length[1]):
            return found
        piece = connection.recv(65536)
        if not piece:
            return found
        found += piece
