"""Clients of a server in a process of their own: sends all requests of a line at once.

Reads lines of {"url", "bodies"} and answers each with a line of {"answers"}.
"""

import asyncio
import json
import sys
from typing import Any

import httpx


async def ask_all(url: str, bodies: list[dict[str, Any]]) -> list[str]:
    """The answers to requests for chats that are sent at once."""
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def one(body: dict[str, Any]) -> str:
            answer = await client.post(f"{url}/v1/chat/completions", json=body)
            answer.raise_for_status()
            return answer.json()["choices"][0]["message"]["content"]

        return await asyncio.gather(*map(one, bodies))


if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"answers": asyncio.run(ask_all(**asked))}), flush=True)
