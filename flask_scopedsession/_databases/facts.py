"""What one database server reports about its connections and limits."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass
from dataclasses import field

from ..snapshot._servers import ServerConnection

Row = tuple[t.Any, ...]


@dataclass(frozen=True, slots=True)
class Activity:
    """One connection, as the server sees it."""

    connection: ServerConnection
    """Without what only the workers know."""
    here: bool
    """Whether it is to the database that was asked about."""
    ours: bool
    """Whether it has our role."""
    connected_s: float | None = None
    """Its minimum age in seconds; ``None``: not shown to our role."""

    @property
    def pid(self) -> int:
        """Its process or thread ID at the server."""
        return self.connection.backend_pid


@dataclass(frozen=True, slots=True)
class Facts:
    """The answer of one server."""

    identity: str
    """The same for two databases of one server."""
    own_pid: int
    """The process or thread ID of the connection that asked."""
    driver_pid: int | None
    """The driver's number for the same connection; another one behind a pooler."""
    own_name: str | None
    """The name of the connection that asked."""
    max_connections: int
    reserved: int
    """How many of `max_connections` are reserved for roles with more rights."""
    in_use: int
    """Open connections, without the one that asked."""
    database_limit: int | None
    role_limit: int | None
    activity: tuple[Activity, ...] = field(repr=False)
    """All connections that are shown to our role, without the one that asked."""
    notes: tuple[str, ...] = ()
    """What is not known, and why."""

    @property
    def joined(self) -> bool:
        """Whether the workers' process IDs are those of the server."""
        return self.driver_pid == self.own_pid


def rows(cursor: t.Any, query: str) -> t.Sequence[Row]:
    """Execute a query and return all of its rows."""
    cursor.execute(query)
    found: t.Sequence[Row] = cursor.fetchall()
    return found


def age(value: t.Any) -> float | None:
    """Return an age in seconds. Clocks may differ, but none is below 0."""
    return None if value is None else max(0.0, float(value))
