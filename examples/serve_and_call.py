"""Serve a checkpoint and call it with the official openai client.

    pip install 'tripod[serve]' openai
    python examples/serve_and_call.py path/to/checkpoint

The server is a process of its own, as it would be in production; any other OpenAI client would do as well.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import httpx
import openai


def main(model: str) -> None:
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "tripod", "serve", model, "--port", str(port), "--chat-template", "plain"])
    try:
        wait_until_ready(server, f"http://127.0.0.1:{port}/health")
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="not needed", http_client=openai.DefaultHttpxClient(trust_env=False)
        )
        print("models:", [card.id for card in client.models.list()])

        for chunk in client.completions.create(model=model, prompt="Once upon a time", max_tokens=24, temperature=0, stream=True):
            print(chunk.choices[0].text, end="", flush=True)
        print()

        reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=16, seed=7)
        print("chat:", repr(reply.choices[0].message.content), reply.usage)
        client.close()
    finally:
        server.terminate()  # requests that run are finished first
        server.wait(timeout=40)


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Loading takes as long as the model is large; /health answers 200 once requests are taken."""
    while server.poll() is None:
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    sys.exit("the server ended before it was ready; what it said stands above")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} MODEL")
    main(sys.argv[1])
