"""The readings of what a database server reports, as ``--server`` shows them.

They are additions to schema 1. What the server does not know, or does not show to
our role, is ``None`` in Python and ``null`` in JSON.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ._json import Reading
from ._readings import DatabaseURL
from ._readings import Holder

Scope = t.Literal["server", "database", "role"]


@dataclass(frozen=True, slots=True)
class ServerConnection(Reading):
    """One connection as the server sees it, joined with what a worker reports."""

    backend_pid: int
    """Its process or thread ID at the server; 0 for a prepared transaction, which has
    none."""
    pid: int | None = None
    """The process ID of the live worker that has it open; null if none has."""
    bind: str | None = None
    """The worker's bind; null if no live worker has it open."""
    holder: Holder | None = None
    """Who has checked it out; null while it is idle in the pool."""
    application_name: str | None = None
    """The name that the client gave itself; null if none is known."""
    client: str | None = None
    """The client's address, or ``local socket``; null if not shown to our role."""
    kind: str | None = None
    """What it is, such as ``autovacuum worker``; null for a client."""
    state: str | None = None
    """The server's word for its state, such as ``idle in transaction``."""
    wait_event: str | None = None
    """What it waits for, such as ``Lock:transactionid``; null if it does not wait."""
    blocked_by: tuple[int, ...] = ()
    """The process or thread IDs of those that hold the lock it waits for."""
    transaction_s: float | None = None
    """Seconds since its transaction began; null if none is open."""
    query_s: float | None = None
    """Seconds since its statement began; null if none is running."""
    state_s: float | None = None
    """Seconds since its state changed."""


@dataclass(frozen=True, slots=True)
class LockWait(Reading):
    """A connection that waits for a lock, and those that block it."""

    waiting: ServerConnection
    """The connection that waits."""
    blockers: tuple[ServerConnection, ...]
    """The connections that hold the lock, or wait for it first."""


@dataclass(frozen=True, slots=True)
class Unclaimed(Reading):
    """Connections of this app that no live worker on this host has open."""

    application_name: str | None
    """The name that they all have; null if none is known."""
    client: str | None
    """The address that they all have; null if not shown to our role."""
    count: int
    """How many there are."""
    oldest_s: float | None
    """Seconds since the state of the longest unchanged one changed."""
    state: str | None
    """The state of that one."""


@dataclass(frozen=True, slots=True)
class ConnectionLimit(Reading):
    """How many connections are accepted, and how many the workers may open."""

    scope: Scope
    """Whose limit it is: the ``server``'s, the ``database``'s or the ``role``'s."""
    limit: int
    """How many connections it accepts."""
    reserved: int
    """How many of these are reserved for roles with more rights."""
    in_use: int | None
    """Connections that are open now."""
    others: int | None
    """How many of these are not our live workers'; null if they cannot be told
    apart."""
    left: int | None
    """How many our live workers can have together; null likewise."""
    workers: int
    """Live workers that connect here."""
    may_open: int | None
    """How many connections their pools may open together; null if one of them is
    unlimited or unknown."""
    unlimited: bool
    """Whether one of their pools is unlimited."""


@dataclass(frozen=True, slots=True)
class ServerView(Reading):
    """What the server of one database reports."""

    binds: tuple[str, ...]
    """The binds that are in this database."""
    url: DatabaseURL
    """Where the database is."""
    version: str | None = None
    """The server's version."""
    error: str | None = None
    """Why it was not asked, or gave no answer; null if it gave one."""
    joined: bool = False
    """Whether its connections could be matched with the workers' by process ID."""
    notes: tuple[str, ...] = ()
    """What is not known, and why."""
    waits: tuple[LockWait, ...] = ()
    """Lock waits in which a connection of ours is involved, longest first."""
    connections: tuple[ServerConnection, ...] = ()
    """The connections that live workers have open."""
    unclaimed: tuple[Unclaimed, ...] = ()
    """Connections of this app that no live worker has open, by name and client."""
    limits: tuple[ConnectionLimit, ...] = ()
    """The limits that are in the workers' way."""
