"""One world per test session (compiled once), emptied for each test."""

import pytest

from tests.mmu.world import World
from vmx.mmu.tlb import flush_all


@pytest.fixture(scope="session")
def _world():
    return World()


@pytest.fixture
def world(_world):
    _world.reset()
    _world.set_mode("none")
    flush_all(_world.cpu)
    return _world
