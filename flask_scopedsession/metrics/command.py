"""``pool-metrics``: serve the metrics of all workers of this host to Prometheus."""

from __future__ import annotations

import sys
import typing as t
from collections.abc import Iterable

import click

from ..cli._loading import application_of
from ..cli._loading import load_app
from ..errors import ControlError

if t.TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family


class _Address(click.ParamType):  # type: ignore[type-arg]
    name = "address:port"

    def convert(self, value: t.Any, param: t.Any, ctx: t.Any) -> t.Any:
        address, _, port = str(value).rpartition(":")
        if not address or not port.isdecimal() or int(port) > 65535:
            self.fail(f"{value!r} is not ADDRESS:PORT, as 127.0.0.1:9188.", param, ctx)
        return address.strip("[]"), int(port)


@click.command(
    "pool-metrics",
    short_help="Serve the metrics of all workers to Prometheus.",
)
@click.option(
    "--listen",
    type=_Address(),
    default="127.0.0.1:9188",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Where to serve /metrics; with port 0, on a free port.",
)
@click.pass_context
def pool_metrics(ctx: click.Context, /, listen: tuple[str, int]) -> None:
    """Serve the metrics of every live worker on this host to Prometheus.

    For an application that has no /metrics of its own. Opens no database connection.
    Everybody who can reach the address can read the metrics. Ends with Ctrl-C, and then
    exits with 130.
    """
    app = load_app(ctx)
    try:
        from prometheus_client import CollectorRegistry
        from prometheus_client import start_http_server
        from prometheus_client.registry import Collector

        from ._totals import ask
        from ._totals import TIMEOUT
        from .prometheus import totals
    except ImportError as error:
        raise click.ClickException(
            f"{error}. pip install Flask-ScopedSession[prometheus]"
        ) from None
    application = application_of(app)

    class AllWorkers(Collector):
        def describe(self) -> Iterable[Family]:
            return ()

        def collect(self) -> Iterable[Family]:
            return totals(app.name, *ask(application, app.name, TIMEOUT))

    registry = CollectorRegistry()
    registry.register(AllWorkers())
    address, port = listen
    try:
        application.live.directory()
        server, thread = start_http_server(port, address, registry)
    except ControlError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(
            f"Cannot listen on {address}:{port}: {error.strerror}."
        ) from None
    at = f"[{address}]" if ":" in address else address
    click.echo(f"Serving http://{at}:{server.server_port}/metrics until Ctrl-C.")
    try:
        thread.join()
    except KeyboardInterrupt:
        server.shutdown()
        server.server_close()
        sys.exit(130)
