"""What the load generator asks for: seeded, and as the trace says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tripod.errors import ConfigError
from tripod.serving.workload import Scale, from_trace, poisson, read_trace, synthetic

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""


def test_a_seed_gives_the_same_requests_and_another_seed_others() -> None:
    one, same, other = (
        poisson(synthetic(50, num_prompt_tokens=7, num_output_tokens=3, seed=seed, vocab_size=100), rate=10.0, seed=seed)
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other
    assert len({ask.prompt_ids for ask in one}) == 50
    assert all(len(ask.prompt_ids) == 7 and all(0 <= i < 100 for i in ask.prompt_ids) for ask in one)


def test_poisson_arrivals_have_their_rate() -> None:
    asks = poisson(synthetic(4000, num_prompt_tokens=1, num_output_tokens=1, seed=0, vocab_size=100), rate=8.0, seed=0)
    assert asks[-1].arrival_s / 4000 == pytest.approx(1 / 8.0, rel=0.05)  # the mean's standard error is 1 / sqrt(4000) = 1.6 %


def test_a_trace_of_azure_is_scaled_to_fit(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(AZURE)
    rows = read_trace(tmp_path / "trace.csv")
    assert [(row.num_prompt_tokens, row.num_output_tokens) for row in rows] == [(374, 44), (396, 109)]
    scale = Scale(prompt=0.5, output=0.1, time=2.0, max_prompt_tokens=190)
    first, second = from_trace(rows, scale=scale, seed=0, vocab_size=100)
    assert (first.arrival_s, len(first.prompt_ids), first.max_tokens) == (0.0, 187, 4)
    assert second.arrival_s == pytest.approx(2 * 4.314579, abs=1e-5)  # 50.9951690 - 46.6805900
    assert (len(second.prompt_ids), second.max_tokens) == (190, 11)


def test_blocks_with_one_hash_of_mooncake_are_one_text(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 500, "input_length": 1300, "output_length": 9, "hash_ids": [1, 2, 3]},
        {"timestamp": 2500, "input_length": 1400, "output_length": 9, "hash_ids": [1, 2, 4]},
    ]
    (tmp_path / "trace.jsonl").write_text("\n".join(map(json.dumps, rows)))
    one, other = from_trace(read_trace(tmp_path / "trace.jsonl"), scale=Scale(prompt=0.125), seed=0, vocab_size=1000)
    assert (one.arrival_s, other.arrival_s) == (0.0, 2.0)
    assert (len(one.prompt_ids), len(other.prompt_ids)) == (162, 175)
    assert one.prompt_ids[:128] == other.prompt_ids[:128]  # two blocks of 512 / 8
    assert one.prompt_ids[128] != other.prompt_ids[128] or one.prompt_ids[129] != other.prompt_ids[129]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n"])
def test_what_is_no_trace_is_refused_with_the_two_formats(tmp_path: Path, content: str) -> None:
    (tmp_path / "trace.csv").write_text(content)
    with pytest.raises(ConfigError, match=r"trace\.csv"):
        read_trace(tmp_path / "trace.csv")
