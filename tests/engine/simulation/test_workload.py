"""Traces are read as their authors describe them, and scaled without losing what prompts share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tripod.engine.simulation.workload import Arrival, read_trace, scale, synthetic
from tripod.errors import DatasetError


def test_azures_format_gives_times_and_lengths_and_shares_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n", "utf-8"
    )
    first, second = read_trace(path)
    assert (first.time_s, first.num_prompt, first.num_output) == (0.0, 374, 44)
    assert (second.time_s, second.num_prompt, second.num_output) == (pytest.approx(4.314579), 396, 109)
    assert [len(arrival.prompt_ids()) for arrival in (first, second)] == [374, 396]
    assert not set(first.prompt_ids()) & set(second.prompt_ids())


def test_mooncakes_format_gives_prompts_that_share_their_hashed_blocks(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 27482, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 2353]}\n'
        '{"timestamp": 30535, "input_length": 1030, "output_length": 26, "hash_ids": [46, 47, 2366]}\n',
        "utf-8",
    )
    for vocab_size in (None, 1000):
        first, second = (arrival.prompt_ids(vocab_size) for arrival in read_trace(path))
        assert (len(first), len(second)) == (1100, 1030)
        assert first[:1024] == second[:1024]  # two blocks of 512
        assert first[1024:1030] != second[1024:]
        assert vocab_size is None or max(first) < vocab_size
    first, second = (arrival.prompt_ids() for arrival in scale(read_trace(path), length=0.1))
    assert (len(first), len(second), first[:102] == second[:102]) == (110, 103, True)


def test_the_real_traces_have_the_requests_that_their_readme_names(shared_data: Path) -> None:
    folder = shared_data / "serving-traces"
    azure, mooncake = read_trace(folder / "AzureLLMInferenceTrace_conv.csv"), read_trace(folder / "synthetic_trace.jsonl")
    assert (len(azure), len(mooncake)) == (19366, 3993)  # lines behind the header; those of the file
    assert sum(arrival.num_prompt for arrival in mooncake) / 3993 == pytest.approx(15325, abs=1)  # the README's average
    assert sum(arrival.num_output for arrival in mooncake) / 3993 == pytest.approx(149, abs=1)
    assert 3000 < azure[-1].time_s < 3700  # about one hour


def test_what_is_not_a_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent\.csv is not a trace; give a \.csv of Azure"):
        read_trace(tmp_path / "absent.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", "utf-8")
    with pytest.raises(DatasetError, match=r"other\.csv is not a trace that we know: KeyError: 'TIMESTAMP'"):
        read_trace(tmp_path / "other.csv")


def test_scaling_changes_density_and_length_alone() -> None:
    arrival = Arrival(time_s=10.0, num_prompt=100, num_output=9, pieces=(1,), piece_len=100, tenant="a")
    [scaled] = scale([arrival, arrival], rate=4.0, length=0.5, limit=1)
    assert (scaled.time_s, scaled.num_prompt, scaled.num_output, scaled.tenant) == (2.5, 50, 4, "a")


def test_made_requests_come_at_the_rate_and_from_the_tenants_that_were_asked_for() -> None:
    arrivals = synthetic(6000, 5.0, prompt=(1, 9), output=(1, 3), num_shared=4, tenants=(("heavy", 20.0), ("light", 1.0)))
    assert arrivals[-1].time_s == pytest.approx(1200, rel=0.05)  # Poisson: 6000 intervals of 0.2 s, 1.3 % standard error
    assert Counter(arrival.tenant for arrival in arrivals)["light"] == pytest.approx(6000 / 21, rel=0.2)
    assert arrivals == synthetic(6000, 5.0, prompt=(1, 9), output=(1, 3), num_shared=4, tenants=(("heavy", 20.0), ("light", 1.0)))
    assert arrivals[0].prompt_ids()[:9] == arrivals[1].prompt_ids()[:9]
