"""A conversation that streams, is kept in a file, and shows the model no more of it than it can read.

python examples/chat_with_memory.py http://127.0.0.1:8000/v1 talk.jsonl "My name is Ada."
python examples/chat_with_memory.py http://127.0.0.1:8000/v1 talk.jsonl "What is my name?"
"""

from __future__ import annotations

import sys

import tripod
from tripod.agents.memory import Window
from tripod.chat.saved import load_messages, save_messages
from tripod.protocols import ChatModel
from tripod.trace import Delta


async def talk(model: ChatModel, file: str, question: str) -> None:
    async for event in tripod.Agent(model, hooks=[Window(tokens=3000)]).stream(question, history=load_messages(file)):
        if isinstance(event, Delta):
            print(event.text, end="", flush=True)
    save_messages(event.messages, file)  # the last event is the result


async def main(address: str, file: str, question: str) -> None:
    async with tripod.Model(address) as model:
        await talk(model, file, question)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: python {sys.argv[0]} MODEL FILE QUESTION")
    tripod.run(main(*sys.argv[1:]))
