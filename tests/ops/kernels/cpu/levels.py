"""Which levels of the kernels the tests can run here; `@each_level` runs a test on every one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tripod.ops.kernels.cpu.build import LEVELS
from tripod.ops.kernels.cpu.library import level_forced, why_not

_WHY_NOT = why_not()
needs_kernels = pytest.mark.skipif(_WHY_NOT is not None, reason=f"no CPU kernels: {_WHY_NOT}")


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each level of the kernels that this processor has; the others are skipped with the reason."""
    from tripod.errors import ConfigError

    try:
        with level_forced(request.param):
            yield request.param
    except ConfigError as error:
        pytest.skip(str(error))
