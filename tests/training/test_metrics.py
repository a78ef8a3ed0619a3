"""Metrics survive a crash, and spikes are noted."""

from __future__ import annotations

from pathlib import Path

from tripod.training.metrics import MetricsLog, SpikeDetector, read_metrics


def test_a_resumed_log_takes_back_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, first_step=-1)
    for step in range(5):
        log.write({"step": step, "loss": 1.5})
    log.close()
    resumed = MetricsLog(path, first_step=2)
    resumed.write({"step": 3, "loss": 0.5})
    resumed.close()
    assert [(record["step"], record["loss"]) for record in read_metrics(path)] == [(0, 1.5), (1, 1.5), (2, 1.5), (3, 0.5)]


def test_a_line_that_was_cut_short_is_left_out_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo', encoding="utf-8")
    assert [record["step"] for record in read_metrics(path)] == [1]
    log = MetricsLog(path, first_step=1)
    log.write({"step": 2})
    log.close()
    assert path.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2}\n'


def test_a_line_is_in_the_file_when_it_is_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", first_step=-1)
    log.write({"step": 1})
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == '{"step": 1}\n'
    log.close()


def test_a_jump_above_the_noise_is_a_spike_and_the_noise_is_not() -> None:
    spikes = SpikeDetector()
    noise = [3.0 + 0.1 * (-1) ** step for step in range(100)]  # standard deviation 0.1
    assert not any(spikes.is_spike(loss) for loss in noise)
    assert not spikes.is_spike(3.55)
    assert spikes.is_spike(4.5)
    assert spikes.is_spike(4.5)  # the first spike did not make the second look usual
    assert not spikes.is_spike(2.9)


def test_a_loss_that_stays_high_is_noted_for_a_while_and_then_usual() -> None:
    spikes = SpikeDetector()
    noise = [0.1 * (-1) ** step for step in range(200)]
    assert not any(spikes.is_spike(3.0 + one) for one in noise)
    noted = [spikes.is_spike(5.0 + one) for one in noise]
    assert noted == [True] * 16 + [False] * 184
    assert spikes.is_spike(7.0)  # spikes are told from the new level


def test_a_falling_loss_has_no_spikes() -> None:
    spikes = SpikeDetector()
    assert not any(spikes.is_spike(10.0 / (1 + step / 10)) for step in range(300))
