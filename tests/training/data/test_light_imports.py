"""The data rooms are for machines that hold data, not models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tripod.training.data


def test_no_data_room_needs_torch_a_tokenizer_library_or_an_http_client() -> None:
    rooms = sorted(path.stem for path in Path(tripod.training.data.__path__[0]).glob("*.py") if path.stem != "__init__")
    assert "order" in rooms
    program = "import sys\n" + "".join(f"import tripod.training.data.{room}\n" for room in rooms)
    program += "print(sorted({'torch', 'tokenizers', 'httpx', 'zstandard'} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert run.stdout.strip() == "[]"
