"""An engine with all the plugins that come along."""

from collections.abc import Callable

import pytest

from tests.conftest import ROOT, request_for
from webui.engine import Engine


@pytest.fixture(scope="session")
def plugged_engine(make_engine: Callable[..., Engine]) -> Engine:
    """One that is ready."""
    engine = make_engine(plugins=[ROOT / "extensions"], lasting=True)
    assert engine.submit([request_for()], "fixture").wait().state == "done"
    return engine
