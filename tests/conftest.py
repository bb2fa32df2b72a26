"""Fresh random inputs in every run, and the seed that brings them back."""

import os
import random
import zlib

import numpy as np
import pytest

VARIABLE = "PIXART_TEST_SEED"
RUN_SEED = int(os.environ.get(VARIABLE) or random.SystemRandom().randrange(2**31))


def pytest_report_header() -> str:
    return f"random inputs: repeat this run with {VARIABLE}={RUN_SEED}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed for this test in this run; printed, so that a failure shows it."""
    value = (RUN_SEED + zlib.crc32(request.node.nodeid.encode())) % 2**31
    print(f"{VARIABLE}={RUN_SEED} (this test: {value})")
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
