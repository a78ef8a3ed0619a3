from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from tripod.analysis.training_maps import (
    Floats,
    _forward_backward,
    _log_densities,
    _viterbi,
    best_training_map,
    fit_training_map,
    outlier_seeds,
    outliers,
    read_training_maps,
    seeds_apart,
    zscored,
)
from tripod.errors import ConfigError

WAY = [0] * 6 + [1] * 5 + [2] * 7


def planted(paths: list[list[int]], seed: int = 0) -> Floats:
    """Statistics of runs that pass through states with means far apart."""
    rng = np.random.default_rng(seed)
    means = np.array([[0.0, 0.0, 5.0], [4.0, 1.0, 2.0], [8.0, -3.0, 0.0], [4.0, 9.0, 9.0]])
    return np.array([[rng.normal(means[state], 0.5) for state in path] for path in paths])


def test_planted_states_are_found_in_the_order_in_which_runs_reach_them() -> None:
    found = fit_training_map(zscored(planted([WAY] * 6)), 3)
    assert found.states.tolist() == [WAY] * 6
    assert found.transitions[0, 2] < 0.01  # nobody leaps


def test_the_number_of_states_is_chosen_by_the_criterion() -> None:
    assert best_training_map(zscored(planted([WAY] * 6)), range(1, 6)).means.shape[0] == 3


def test_a_planted_outlier_is_found_and_none_where_there_is_none() -> None:
    detour = [0] * 4 + [3] * 10 + [1] * 4
    for paths, expected in (([WAY] * 5 + [detour] + [WAY] * 2, [5]), ([WAY] * 8, [])):
        found = best_training_map(zscored(planted(paths)), range(2, 6))
        assert outliers(seeds_apart(dict(enumerate(found.states.tolist())))) == expected


def test_a_seed_is_compared_with_the_others_and_not_with_itself() -> None:
    apart = seeds_apart({"a": [0, 1], "b": [0, 1], "c": [1, 0]})  # kappas: a and b 1, each with c -1
    assert apart == {"a": 0.0, "b": 0.0, "c": -1.0}


def test_likelihood_and_best_path_are_those_of_all_paths_enumerated() -> None:
    rng = np.random.default_rng(3)
    sequence, means = rng.normal(size=(5, 2)), rng.normal(size=(3, 2))
    densities = _log_densities(sequence, means, np.full((3, 2), 0.7))
    start, transitions = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), size=3)
    logs = {}
    for path in itertools.product(range(3), repeat=5):
        moves = sum(np.log(transitions[one, other]) for one, other in itertools.pairwise(path))
        logs[path] = np.log(start[path[0]]) + moves + sum(densities[step, state] for step, state in enumerate(path))
    [shares], moves, log_likelihood = _forward_backward(densities[None], start, transitions)
    twice, both_moves, both = _forward_backward(np.stack([densities, densities]), start, transitions)  # two sequences are two times one
    assert (twice == shares).all()
    assert both_moves == pytest.approx(2 * moves)
    assert both == pytest.approx(2 * log_likelihood)
    assert log_likelihood == pytest.approx(np.logaddexp.reduce(list(logs.values())))
    assert tuple(_viterbi(densities, start, transitions)) == max(logs, key=lambda path: logs[path])
    last_in_state_1 = sum(np.exp(log - log_likelihood) for path, log in logs.items() if path[-1] == 1)
    assert shares[-1, 1] == pytest.approx(last_in_state_1)
    from_0_to_2 = sum(np.exp(log - log_likelihood) * [*itertools.pairwise(path)].count((0, 2)) for path, log in logs.items())
    assert moves[0, 2] == pytest.approx(from_0_to_2)


def test_more_states_than_checkpoints_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 states cannot be told apart in 4 checkpoints"):
        fit_training_map(np.zeros((1, 4, 2)), 5)


def test_the_published_outliers_are_found_from_the_published_states(shared_data: Path) -> None:
    maps = read_training_maps(shared_data / "pythia-evals" / "polypythias" / "training_maps.tsv")
    assert outlier_seeds(maps) == [3, 4]  # the paper's
