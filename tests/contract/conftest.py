"""What all contract tests share. Cases are built from the registry: see ``cases.py`` and ``model_cases.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_memory_is_nan() -> Iterator[None]:
    """Freshly allocated memory holds NaN, so that an output that is never written cannot pass by luck."""
    before = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    mode, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(mode, warn_only=warn)


@pytest.fixture(autouse=True)
def random_state_is_left_alone() -> Iterator[None]:
    """Tests seed; whoever runs after them must not depend on that."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
