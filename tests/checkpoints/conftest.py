import pytest
import torch


@pytest.fixture(autouse=True)
def seeded_torch(seed: int) -> None:
    """Weights and inputs of every test here come from this run's seed."""
    torch.manual_seed(seed)
