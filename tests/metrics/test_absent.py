"""Who does not ask for the metrics does not pay for them."""

from __future__ import annotations

import pytest


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("opentelemetry", "opentelemetry", "otel"),
        ("prometheus", "prometheus_client", "prometheus"),
    ],
)
def test_the_library_is_absent(run_script, module, library, extra):
    """Serving imports none of it; asked for, the error says what to install."""
    done = run_script(
        "import sys\n"
        "import flask_scopedsession\n"
        "assert not {'opentelemetry', 'prometheus_client'} & set(sys.modules)\n"
        "assert 'flask_scopedsession.metrics' not in sys.modules\n"
        f"sys.modules[{library!r}] = None\n"
        "try:\n"
        f"    import flask_scopedsession.metrics.{module}\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert f"pip install Flask-ScopedSession[{extra}]" in done.stdout
