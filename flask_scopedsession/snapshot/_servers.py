"""Frozen readings of what a database server says, and their JSON.

They are additions to schema 1, and made as those in :mod:`.snapshot`. What the server
does not know, or does not show to our role, is ``None``.
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
    """One connection as the server sees it, and whose it is as far as we know."""

    backend_pid: int
    """0 is a prepared transaction, which has none."""
    pid: int | None = None
    """The live worker that has it open."""
    bind: str | None = None
    holder: Holder | None = None
    """Who has it checked out; ``None`` while it rests in the pool."""
    application_name: str | None = None
    client: str | None = None
    kind: str | None = None
    """What it is, where it is no client, such as ``autovacuum worker``."""
    state: str | None = None
    wait_event: str | None = None
    blocked_by: tuple[int, ...] = ()
    transaction_s: float | None = None
    query_s: float | None = None
    """How long its statement has been running."""
    state_s: float | None = None


@dataclass(frozen=True, slots=True)
class LockWait(Reading):
    """A connection that waits for a lock, and those that are in its way."""

    waiting: ServerConnection
    blockers: tuple[ServerConnection, ...]


@dataclass(frozen=True, slots=True)
class Unclaimed(Reading):
    """Connections of this app that no live worker on this host has open."""

    application_name: str | None
    client: str | None
    count: int
    oldest_s: float | None
    """How long the first of them has been in its state."""
    state: str | None
    """That state."""


@dataclass(frozen=True, slots=True)
class ConnectionLimit(Reading):
    """What a server, database or role accepts, and what the workers may ask for."""

    scope: Scope
    limit: int
    reserved: int
    """Of these, for others than us only."""
    in_use: int | None
    others: int | None
    """In use, and not by our live workers."""
    left: int | None
    """What all our live workers together may have."""
    workers: int
    may_open: int | None
    unlimited: bool
    """A pool of theirs has no limit."""


@dataclass(frozen=True, slots=True)
class ServerView(Reading):
    """What the server of one database says of it."""

    binds: tuple[str, ...]
    url: DatabaseURL
    version: str | None = None
    error: str | None = None
    """Why it was not asked, or gave no answer."""
    joined: bool = False
    """Whether its connections could be told apart by their process ids."""
    notes: tuple[str, ...] = ()
    """What is not known, and why."""
    waits: tuple[LockWait, ...] = ()
    connections: tuple[ServerConnection, ...] = ()
    unclaimed: tuple[Unclaimed, ...] = ()
    limits: tuple[ConnectionLimit, ...] = ()
