"""The pytest plugin of Flask-ScopedSession: isolation, leaks and statements of tests.

pytest loads it in every run of an environment that has the package, whatever is tested.
So it is a module of its own, and imports the package, with Flask and SQLAlchemy, only
once the tests have done so.
"""

from __future__ import annotations

import sys
import typing as t
from collections.abc import Callable
from collections.abc import Generator
from contextlib import ExitStack

import pytest

if t.TYPE_CHECKING:
    from flask import Flask

    from flask_scopedsession._pools.counting import StatementCount
    from flask_scopedsession.testing._leaks import Leak
    from flask_scopedsession.testing._leaks import Leaks

ISOLATION = "scopedsession_isolation"
LEAKS = "scopedsession_leaks"
_LEAKS = ("error", "warn", "ignore")

#: The package's module without which nothing can leak.
_APPLICATION = "flask_scopedsession._application"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    parser.addini(
        ISOLATION,
        "roll back what each test that uses the fixture 'app' does to the databases"
        " (true or false; default: false)",
        type="bool",
        default=False,
    )
    parser.addini(
        LEAKS,
        "a session or connection that outlives its test: error (default), warn, ignore",
        default="error",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the options, and watch the tests."""
    config.addinivalue_line(
        "markers",
        f"real_commits: what this test commits stays, in spite of {ISOLATION}",
    )
    try:
        isolates = config.getini(ISOLATION)
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(
            f"{ISOLATION} must be true or false: {error}. Correct it in pytest's"
            " configuration."
        ) from None
    leaks = config.getini(LEAKS)
    if leaks not in _LEAKS:
        raise pytest.UsageError(
            f"{LEAKS} must be one of {', '.join(_LEAKS)}, not {leaks!r}. Correct it in"
            " pytest's configuration."
        )
    config.pluginmanager.register(Watch(config, isolates, leaks), Watch.NAME)


@pytest.fixture
def db_isolation(app: Flask, request: pytest.FixtureRequest) -> None:
    """Roll back what this test does to the databases of ``app``, whatever it commits.

    It begins as soon as ``app`` is there, before the other fixtures of the test.
    """
    # So it has begun, unless a test asks for this with getfixturevalue().
    watch = request.config.pluginmanager.get_plugin(Watch.NAME)
    t.cast(Watch, watch).isolate(app, request.addfinalizer)


@pytest.fixture
def count_statements(app: Flask) -> Callable[..., StatementCount]:
    """Return ``db.count_statements`` of the extension that ``app`` uses.

    It counts what a block sends: ``with count_statements(at_most=2):``.
    """
    extension = getattr(app, "extensions", {}).get("scopedsession")
    if extension is None:
        pytest.fail(
            "count_statements: the fixture 'app' does not use Flask-ScopedSession."
            " Call db.init_app(app) in its factory.",
            pytrace=False,
        )
    return t.cast("Callable[..., StatementCount]", extension.count_statements)


class Watch:
    """Isolates one test after another, and sees what each of them leaves open."""

    NAME = "scopedsession-watch"

    def __init__(self, config: pytest.Config, isolates: bool, leaks: str) -> None:
        self._config = config
        self._isolates = isolates
        self._mode = leaks
        self._leaks: Leaks | None = None
        self._pending = False
        """The current test is to be isolated, and its ``app`` is not there yet."""
        self._settled = False
        """It is isolated, or must not be."""
        self._found: list[Leak] | None = None
        """What the current test has left open; ``None`` if it has failed anyway."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Note what is open before the test; isolate it if no fixture was set up."""
        __tracebackhide__ = True
        names = getattr(item, "fixturenames", ())
        self._settled = item.get_closest_marker("real_commits") is not None
        self._pending = (
            not self._settled
            and "app" in names
            # A suite may have a fixture of this name that does something else.
            and (self._isolates or len(_definitions(item, "db_isolation")) == 1)
        )
        self._found = []
        if (leaks := self._watched()) is not None:
            leaks.begin()
        yield
        if self._pending and "app" in (values := getattr(item, "funcargs", {})):
            self.isolate(values["app"], item.addfinalizer)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[t.Any], request: pytest.FixtureRequest
    ) -> Generator[None, t.Any, t.Any]:
        """Isolate the test before its first fixture, but not before ``app`` is there.

        If ``app`` outlives the test, that is before the first fixture that does not;
        else it is right after ``app``.
        """
        __tracebackhide__ = True
        if fixturedef.scope != "function":
            # What it opens is not the test's, which is only the first to use it.
            leaks = self._watched()
            before = None if leaks is None else leaks.reading()
            try:
                return (yield)
            finally:
                if (leaks := self._watched()) is not None:
                    leaks.keep(before)
        if self._pending and any(
            each.scope != "function" for each in _definitions(request.node, "app")[-1:]
        ):
            self.isolate(request.getfixturevalue("app"), request.node.addfinalizer)
        value = yield
        if self._pending and fixturedef.argname == "app":
            self.isolate(value, request.addfinalizer)
        return value

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        """Forgive a test that has failed anyway what it leaves open."""
        if call.excinfo is not None:
            self._found = None  # its traceback keeps what its variables hold

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Look for leaks after all fixtures of the test have ended."""
        __tracebackhide__ = True
        yield
        self._look()
        if (leaks := self._leaks) is not None and self._found:
            lasting = leaks.lasting(self._found)
            if lasting:
                self._report(item, lasting)

    def isolate(self, app: Flask, at_end: Callable[[Callable[[], None]], None]) -> None:
        """Isolate the current test from now on, unless it is or must not be.

        :param at_end: Takes what is to be called at the end.
        """
        if self._settled:
            return
        self._settled, self._pending = True, False
        from flask_scopedsession.testing import isolate

        stack = ExitStack()
        stack.enter_context(isolate(app))
        stack.callback(self._look)  # before all connections are taken back
        at_end(stack.close)

    def _look(self) -> None:
        leaks = self._watched()
        if leaks is not None and self._found is not None:
            self._found += leaks.found()

    def _report(self, item: pytest.Item, found: list[str]) -> None:
        problem = "\n".join(
            [
                *(f"left open: {each}" for each in found),
                f"To be warned only, set {LEAKS} = warn in pytest's configuration.",
            ]
        )
        if self._mode == "warn":
            item.warn(pytest.PytestWarning(problem))
        else:
            pytest.fail(problem, pytrace=False)

    def _watched(self) -> Leaks | None:
        """Return what finds leaks, once there can be any."""
        if (
            self._leaks is None
            and self._mode != "ignore"
            and _APPLICATION in sys.modules
        ):
            from flask_scopedsession.testing._leaks import Leaks

            self._leaks = Leaks(str(self._config.rootpath))
        return self._leaks

    def pytest_unconfigure(self) -> None:
        """Watch nothing any more."""
        if self._leaks is not None:
            self._leaks.close()


def _definitions(item: t.Any, name: str) -> t.Sequence[pytest.FixtureDef[t.Any]]:
    """Return the fixtures of a name that a test can see; it uses the last one.

    Private: pytest tells a plugin of a fixture only when it is set up.
    """
    found = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    return t.cast("t.Sequence[pytest.FixtureDef[t.Any]]", found.get(name, ()))
