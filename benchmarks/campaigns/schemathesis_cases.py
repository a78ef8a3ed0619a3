"""The server against its own OpenAPI document: schemathesis makes the requests, and no answer may be 5xx or undocumented.

    python -m benchmarks.campaigns schemathesis [--cases 5000] [--seed 0]

A tiny seeded model answers, with a context of 64 tokens, so that the largest request that a schema allows is still short. Deadlines
below a minute are raised to one (`timeout`, X-Request-Timeout): a request that gives itself a microsecond rightly gets 504.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.campaigns.served_model import APP, MODEL, served, tiny_model
from benchmarks.setting import RESULTS, setting

HOOKS = f"""
import schemathesis

@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict):
        if "model" in body and isinstance(body["model"], str) and len(body["model"]) % 8 != 7:
            # else nearly every case would end at a model that is not there
            body["model"] = "hash" if context.operation.path == "/v1/embeddings" else {MODEL!r}
        if isinstance(body.get("timeout"), (int, float)) and 0 < body["timeout"] < 60:
            body["timeout"] = 60.0
    return body

@schemathesis.hook
def map_path_parameters(context, path_parameters):
    if path_parameters and "app" in path_parameters and len(path_parameters["app"]) % 8 != 7:
        path_parameters["app"] = {APP!r}
    return path_parameters

@schemathesis.hook
def map_headers(context, headers):
    if headers and "X-Request-Timeout" in headers:
        headers["X-Request-Timeout"] = "60"
    return headers
"""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
NUM_OPERATIONS = 9  # that take a body, and so the most cases


def main(arguments: list[str]) -> int:
    """Runs the campaign; schemathesis' own exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns schemathesis", description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    log = RESULTS / "schemathesis.log"
    with tempfile.TemporaryDirectory(prefix="tripod-schemathesis-") as name:
        folder = Path(name)
        (folder / "hooks.py").write_text(HOOKS)
        with served(tiny_model(folder / "model", max_positions=64), "--max-running", "64") as server:
            command = [
                *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.root}/openapi.json"),
                *("--max-examples", str(max(1, options.cases // NUM_OPERATIONS)), "--seed", str(options.seed), "--checks", CHECKS),
                *("--continue-on-failure", "--request-timeout", "120", "--no-color", "--suppress-health-check", "all"),
            ]
            # its hooks are a module of the working directory, and so would be its caches
            outcome = subprocess.run(
                command,
                cwd=folder,
                env={**_environment(folder), "SCHEMATHESIS_HOOKS": "hooks"},
                capture_output=True,
                text=True,
                check=False,
            )
            samples = server.metrics()
            ending = server.stop()
    counted = {name: value for name, value in samples.items() if "_bucket{" not in name and "_created" not in name}
    log.write_text(f"{setting('benchmarks.campaigns', ('schemathesis',))}\n\n{outcome.stdout}\n{outcome.stderr}\n{ending}\n{counted}\n")
    print(outcome.stdout[-4000:])
    print(outcome.stderr[-2000:])
    print(f"raw: {log}")
    held = {key: ending[key] for key in ("still_admitted", "running", "waiting", "unaccounted_blocks", "leaked_blocks") if ending[key]}
    if held:
        print(f"FAILED: held at the end: {held}")
    return outcome.returncode or bool(held)


def _environment(folder: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
