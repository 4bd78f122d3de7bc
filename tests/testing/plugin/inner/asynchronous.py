from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from test_isolated import MADE
from test_isolated import names
from test_isolated import write
from test_isolated import WRITTEN


@pytest_asyncio.fixture
async def written(app):
    await asyncio.sleep(0)
    write(app)


@pytest.mark.asyncio
@pytest.mark.parametrize("time", range(2))
async def test_fine_coroutine(app, time):
    await asyncio.sleep(0)
    assert names(app) == MADE
    write(app)


@pytest.mark.asyncio
async def test_fine_coroutine_fixture(app, written):
    assert names(app) == WRITTEN
