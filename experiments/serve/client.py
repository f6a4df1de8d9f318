"""Clients of a server in a process of their own: sends all requests of a line at once.

Reads lines of {"url", "bodies"} and answers each with a line of {"answers"}. It speaks just enough
HTTP, as a full client would take more time of the machine than the server does.
"""

import asyncio
import json
import sys
from typing import Any
from urllib.parse import urlsplit


async def ask(host: str, port: int, body: dict[str, Any]) -> str:
    """The answer to one request for a chat, on a connection of its own."""
    reader, writer = await asyncio.open_connection(host, port)
    sent = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    writer.write(head.encode() + sent)
    begin, _, text = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert begin.split()[1] == b"200", text
    return json.loads(text)["choices"][0]["message"]["content"]


async def ask_all(url: str, bodies: list[dict[str, Any]]) -> list[str]:
    """The answers to requests that are sent at once."""
    at = urlsplit(url)
    assert at.hostname is not None and at.port is not None
    return await asyncio.gather(*(ask(at.hostname, at.port, body) for body in bodies))


if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"answers": asyncio.run(ask_all(**asked))}), flush=True)
