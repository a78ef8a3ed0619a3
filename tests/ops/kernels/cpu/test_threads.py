"""How many threads are allowed: affinity, control groups of both versions, and the variable everyone knows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tripod.ops.kernels.cpu.threads import cgroup_cpus, default_num_threads


def test_the_narrowest_group_on_the_way_to_the_root_limits_version_two(tmp_path: Path) -> None:
    own = tmp_path / "fs" / "pod" / "container"
    own.mkdir(parents=True)
    (own / "cpu.max").write_text("max 100000\n")
    (own.parent / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "cgroup").write_text("0::/pod/container\n")
    assert cgroup_cpus(tmp_path / "cgroup", tmp_path / "fs") == 1.5


def test_version_one_says_minus_one_for_no_limit(tmp_path: Path) -> None:
    group = tmp_path / "fs" / "cpu" / "job"
    group.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("5:memory:/job\n4:cpu,cpuacct:/job\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_cpus(tmp_path / "cgroup", tmp_path / "fs") is None
    (group / "cpu.cfs_quota_us").write_text("400000\n")
    assert cgroup_cpus(tmp_path / "cgroup", tmp_path / "fs") == 4.0


def test_a_system_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert cgroup_cpus(tmp_path / "absent", tmp_path) is None


def test_the_variable_of_openmp_only_lowers_what_the_affinity_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1,2")  # a list is for nested regions: the first number is ours
    assert default_num_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    assert default_num_threads() <= len(os.sched_getaffinity(0))
