"""Take protections out, one by one, and see that their tests go red.

    python tests/mutations.py [WORD ...]

Runs, for each entry of :data:`MUTATIONS` whose name contains one of the words, the
tests that promise to notice, against a copy of the package without that protection.
This file is not a test: pytest does not collect it. Run it by hand, with the same
Python as the tests. The results are the last column of ``docs/robustness.md``.

A protection is found by the qualified name of the function it is in, and by a few words
of its source. ``whole/test_mutations.py`` checks that every one of them is still there.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "flask_scopedsession"

#: Not "python -m pytest", which would import the package of the checkout.
RUN = "import sys; del sys.path[0]; import pytest; sys.exit(pytest.main())"

#: Seconds after which a run counts as hung, and so as red.
LONGEST = 240


class Change(NamedTuple):
    """Source of the package, and its replacement."""

    where: str
    """``package.module:Class.method``, ``package.module:NAME`` for an assignment, or
    ``package.module`` for a statement on the module's own level."""
    old: str | None
    """Part of a line, or whole lines; ``None`` for the whole definition."""
    new: str


class NotFound(LookupError):
    """A change does not fit the package any more."""


class Mutation(NamedTuple):
    """A protection that is taken out, and the tests that notice."""

    name: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]
    since: tuple[int, int]
    """The oldest Python that they notice it on."""


def mutation(
    name: str, *changes: Change, tests: str, since: tuple[int, int] = (3, 10)
) -> Mutation:
    """Return a mutation.

    :param tests: Files, each followed by the names of tests in it.
    """
    found: list[str] = []
    file = ""
    for word in tests.split():
        if word.endswith(".py"):
            file = word
        else:
            found.append(f"tests/{file}::{word}")
    return Mutation(name, changes, tuple(found), since)


#: Nothing removes a session: neither teardown nor the end of the context's life.
UNREMOVED = (
    Change(
        "flask_scopedsession._scopes.teardown:end_scope",
        "list(sessions.items())",
        "()",
    ),
    Change(
        "flask_scopedsession._scopes.ledger:Ledger._freed",
        "if scope.sessions:",
        "if ():",
    ),
)

MUTATIONS = (
    mutation(
        "scope: a thread without a context gets the last one",
        Change(
            "flask_scopedsession._sessions.registry:Registry.__call__",
            """
    context = current_context(None)
""",
            """
    context = current_context(None) or getattr(Registry, "last", None)
    Registry.last = context
""",
        ),
        tests="""
        scopes/test_scope.py test_a_thread_has_no_context
        scopes/test_threads.py test_a_plain_thread_has_no_context
          test_a_plain_pool_has_no_context
        """,
    ),
    mutation(
        "scope: sessions are kept on the application",
        Change(
            "flask_scopedsession._sessions.registry:Registry.session_of",
            "setattr(context, self.session_name, session)",
            "setattr(type(context), self.session_name, session)",
        ),
        tests="""
        scopes/test_contexts.py test_nested_contexts
          test_a_copied_request_context test_a_client_that_keeps_its_context
        scopes/test_threads.py test_a_copied_request_context_in_a_thread
        scopes/test_async.py test_gather_with_contexts_of_their_own
        scopes/test_streams.py test_a_context_of_its_own_in_a_generator
        """,
    ),
    mutation(
        "teardown: nothing is removed",
        UNREMOVED[0],
        tests="""
        scopes/test_contexts.py test_a_context_that_is_pushed_twice
          test_a_context_that_is_used_again
          test_the_debugger_that_keeps_a_context
        """,
    ),
    mutation(
        "teardown and freeing: nothing is removed",
        *UNREMOVED,
        tests="""
        scopes/test_contexts.py test_nested_contexts
          test_the_client_within_a_context
          test_the_client_within_a_request_context
          test_the_client_within_a_view test_a_copied_request_context
          test_a_copied_request_context_after_the_request
          test_another_teardown_that_raises
          test_teardowns_of_requests_that_raise
          test_a_session_in_another_teardown
        scopes/test_async.py test_an_async_view
          test_a_request_that_goes_through_threads
          test_async_teardowns_of_the_context test_gather
          test_an_async_view_that_raises test_a_task_that_outlives_its_view
        scopes/test_streams.py test_a_stream_that_is_read_to_its_end
          test_a_client_that_goes_away test_a_body_that_is_never_closed
          test_which_session_a_generator_sees
          test_two_streams_that_are_read_by_turns
        scopes/test_failures.py test_an_error_in_the_application
          test_an_error_in_a_listener_of_the_session
          test_an_error_in_a_listener_of_the_engine
        """,
    ),
    mutation(
        "freeing: a scope that an interrupt left behind is still listed",
        Change(
            "flask_scopedsession._live.reader:Reader.open_sessions",
            "self._ledger.forget_freed()",
            "pass",
        ),
        tests="""
        scopes/test_interrupts.py test_at_any_point
        """,
    ),
    mutation(
        "gevent: a killed greenlet's session is not removed",
        *UNREMOVED,
        Change(
            "flask_scopedsession._scopes.teardown:close_session",
            "discard(session, transaction, ledger, error)",
            "pass",
        ),
        tests="""
        whole/concurrency/test_gevent_kills.py test_killed
        """,
    ),
    mutation(
        "sharing: statements of two threads overlap unnoticed",
        Change(
            "flask_scopedsession._pools.sharing:note_sharing",
            None,
            """
def note_sharing(slot: Slot) -> None:
    pass
""",
        ),
        tests="""
        scopes/test_threads.py test_a_statement_during_another_threads_in_debug_mode
          test_statements_at_the_same_time_are_logged_once_per_view
          test_workers_that_share_a_context
        scopes/test_async.py test_gather_of_threads
        """,
    ),
    mutation(
        "sharing: a statement within a statement counts as another thread's",
        Change(
            "flask_scopedsession._pools.sharing:note_sharing",
            "if runner is None or runner == get_ident():",
            "if runner is None:",
        ),
        tests="""
        scopes/test_threads.py test_a_statement_within_a_statement
        """,
    ),
    mutation(
        "sharing: a connection that is meant for all threads is reported",
        Change(
            "flask_scopedsession._pools.statements:_watched",
            "is_shared = isinstance(engine.pool, StaticPool)",
            "is_shared = False",
        ),
        tests="""
        scopes/test_threads.py test_a_shared_connection_by_configuration
        """,
    ),
    mutation(
        "sharing: a scope ends during another thread's statement",
        Change(
            "flask_scopedsession._pools.sharing:abandon",
            None,
            """
def abandon(slot: Slot, connection: t.Any) -> None:
    pass
""",
        ),
        tests="""
        scopes/test_threads.py test_an_end_during_another_threads_statement
        """,
    ),
    mutation(
        "sharing: a thread does not learn that its session has ended",
        Change(
            "flask_scopedsession._pools.statements:_watched.execute",
            "raise refusal()",
            "pass",
        ),
        tests="""
        scopes/test_threads.py test_an_end_during_another_threads_statement
        """,
    ),
    mutation(
        "sharing: an abandoned connection is never closed",
        Change(
            "flask_scopedsession._pools.statements:_watched.execute",
            "slot.abandoned.close()",
            "pass",
        ),
        tests="""
        scopes/test_threads.py test_an_end_during_another_threads_statement
        """,
    ),
    mutation(
        "sharing: a statement that failed runs for ever",
        Change(
            "flask_scopedsession._pools.statements:_watched.execute",
            """
            slot.runner = None
            if slot.abandoned is not None:
""",
            """
            if slot.abandoned is not None:
""",
        ),
        Change(
            "flask_scopedsession._pools.statements:_watched.execute",
            """
        if effect is not None:
            after_effect(slot, effect, cursor)
""",
            """
        slot.runner = None
        if effect is not None:
            after_effect(slot, effect, cursor)
""",
        ),
        tests="""
        scopes/test_threads.py test_a_statement_that_failed_is_over
        """,
    ),
    mutation(
        "sharing: SQLAlchemy closes a busy connection",
        Change(
            "flask_scopedsession._pools.sharing:abandon",
            "connection.invalidate()",
            "pass",
        ),
        tests="""
        scopes/test_threads.py test_an_end_during_another_threads_statement
        """,
    ),
    mutation(
        "sharing: each use is logged",
        Change(
            "flask_scopedsession._pools.sharing:_report",
            'if ledger.first_report(("shared", about)):',
            "if True:",
        ),
        tests="""
        scopes/test_threads.py
          test_statements_at_the_same_time_are_logged_once_per_view
        """,
    ),
    mutation(
        "sharing: an interrupted statement runs on in the pool",
        Change(
            "flask_scopedsession._pools.account:PoolAccount.check_in",
            "if slot.runner is not None:",
            "if ():",
        ),
        tests="""
        scopes/test_threads.py test_a_mark_that_an_interrupt_left_behind
        """,
    ),
    mutation(
        "engines: SQLite in memory has a connection for each thread",
        Change(
            "flask_scopedsession._pools.engine:_in_memory",
            'options["poolclass"] = QueuePool',
            "pass",
        ),
        tests="""
        pools/test_memory.py test_the_pool_is_a_queue
        """,
    ),
    mutation(
        "memory: nothing keeps the database while no connection is open",
        Change(
            "flask_scopedsession._pools.memory:MemoryDatabase._open_for",
            "weakref.finalize(pool, _connect(dbapi, uri).close).atexit = False",
            "_connect(dbapi, uri).close()",
        ),
        tests="""
        pools/test_memory.py test_it_lives_as_long_as_the_engine
        """,
    ),
    mutation(
        "memory: dispose() leaves the data to connections that are out",
        Change(
            "flask_scopedsession._pools.memory:MemoryDatabase._open_for",
            "is_over = not self._is_shared",
            "is_over = False",
        ),
        tests="""
        pools/test_memory.py test_dispose_while_a_connection_is_out
        """,
    ),
    mutation(
        "memory: a fork uses a copy that stays locked",
        Change(
            "flask_scopedsession._pools.memory:MemoryDatabase._open_for",
            "not _is_free(dbapi, _uri(self._name))",
            "False",
        ),
        tests="""
        pools/test_memory.py test_a_fork_during_a_transaction
        """,
    ),
    mutation(
        "memory: applications share a database by its name",
        Change(
            "flask_scopedsession._pools.memory:MemoryDatabase.of",
            "shared = _shared.setdefault(ledger, {})",
            "shared = _shared.setdefault(cls, {})",
        ),
        tests="""
        pools/test_memory.py test_two_apps_have_two_databases
        """,
    ),
    mutation(
        "streams: requests begin inside an abandoned stream's context",
        Change(
            "flask_scopedsession._scopes.streams:watch_requests.wsgi_app",
            "if ANSWERED in before.__dict__:",
            "if ():",
        ),
        tests="""
        scopes/test_streams.py
          test_later_requests_on_the_thread_of_an_abandoned_stream
        """,
    ),
    mutation(
        "streams: a later request's body is read inside the abandoned context",
        Change(
            "flask_scopedsession._scopes.streams:_Body.__next__",
            "self._inside.run(next, self._iterator)",
            "next(self._iterator)",
        ),
        tests="""
        scopes/test_streams.py
          test_a_generator_without_a_context_after_an_abandoned_stream
          test_a_context_variable_of_the_view
        """,
    ),
    mutation(
        "streams: a later request's body is closed inside the abandoned context",
        Change(
            "flask_scopedsession._scopes.streams:_Body.close",
            "self._inside.run(close)",
            "close()",
        ),
        tests="""
        scopes/test_streams.py
          test_a_generator_without_a_context_after_an_abandoned_stream
          test_a_context_variable_of_the_view
        scopes/test_wsgi.py test_bodies
        """,
    ),
    mutation(
        "streams: a later request's body is expected to have close()",
        Change(
            "flask_scopedsession._scopes.streams:_Body.close",
            "if close is not None:",
            "if True:",
        ),
        tests="""
        scopes/test_wsgi.py test_an_iterator_without_close_after_an_abandoned_stream
        """,
    ),
    mutation(
        "streams: a later request's file is no longer the server's own",
        Change(
            "flask_scopedsession._scopes.streams:_runs_code",
            "and not is_file",
            "",
        ),
        tests="""
        scopes/test_wsgi.py test_bodies
        """,
    ),
    mutation(
        "streams: teardown takes the current context for its own",
        Change(
            "flask_scopedsession._application:Application.end_scopes_with_contexts.remove_sessions",
            "context = context_torn_down()",
            "pass",
        ),
        tests="""
        scopes/test_streams.py
          test_an_abandoned_stream_that_is_freed_during_another_request
        """,
    ),
    mutation(
        "contexts: requests in a context that lasts are not counted",
        Change(
            "flask_scopedsession._scopes.streams:watch_requests.wsgi_app",
            "_note_shared(ledger, before)",
            "pass",
        ),
        tests="""
        scopes/test_lasting_contexts.py test_it_is_reported_once
        live/test_reader.py test_requests_of_a_session
        """,
    ),
    mutation(
        "contexts: the requests of a session are not shown",
        Change(
            "flask_scopedsession._scopes.streams:requests_served",
            "return None if context is None else getattr(context, SERVED, None)",
            "return None",
        ),
        tests="""
        live/test_reader.py test_requests_of_a_session
        """,
    ),
    mutation(
        "session: a removed one goes on",
        Change(
            "flask_scopedsession._scopes.teardown:refuse_use",
            "own.get_bind = refuse",
            "pass",
        ),
        Change(
            "flask_scopedsession._scopes.teardown:refuse_use",
            "if _HAS_ONE_WAY:",
            "if ():",
        ),
        tests="""
        scopes/test_streams.py test_the_views_session_kept_by_a_generator
          test_which_session_a_generator_sees
        scopes/test_contexts.py test_nested_contexts
        sessions/test_plain.py test_a_removed_session_takes_no_connection
        """,
    ),
    mutation(
        "session: a removed one goes on if an engine is named",
        Change(
            "flask_scopedsession._scopes.teardown:refuse_use",
            "if _HAS_ONE_WAY:",
            "if ():",
        ),
        tests="""
        sessions/test_plain.py test_a_removed_session_takes_no_connection
        """,
    ),
    mutation(
        "session: what close() itself has begun stays open",
        Change(
            "flask_scopedsession._scopes.teardown:close_session",
            "_close_again(session)",
            "pass",
        ),
        tests="""
        sessions/test_plain.py test_close_that_executes
          test_a_listener_that_executes
        """,
    ),
    mutation(
        "session: one of a bind follows its class to another bind",
        Change(
            "flask_scopedsession._sessions.routing:keep_to",
            "own.get_bind = get_bind",
            "pass",
        ),
        tests="""
        sessions/test_plain.py test_a_class_that_routes
        """,
    ),
    mutation(
        "routing: a union or function goes to the default database",
        Change(
            "flask_scopedsession._sessions.routing:_pass_statement",
            "if not state.bind_arguments:",
            "if ():",
        ),
        tests="""
        sessions/test_routing.py test_orm_statements
        sessions/test_routing_at_random.py test_all_agree
        """,
    ),
    mutation(
        "routing: columns do not say where their table is",
        Change(
            "flask_scopedsession._sessions.models:Models.of_statement",
            "each.table if isinstance(each, ColumnClause) else each",
            "each",
        ),
        tests="""
        sessions/test_routing.py test_orm_statements
          test_two_databases_in_one_statement
        """,
    ),
    mutation(
        "routing: one of two databases gets the statement",
        Change(
            "flask_scopedsession._sessions.routing:Routed._routed",
            "if len(targets) > 1 and not _one_database(targets.values()):",
            "if ():",
        ),
        tests="""
        sessions/test_routing.py test_two_databases_in_one_statement
        """,
    ),
    mutation(
        "routing: nobody looks at children and association tables",
        Change(
            "flask_scopedsession._sessions.models:Models._of_used",
            "catalogue.refuse_split(mapper)",
            "pass",
        ),
        tests="""
        sessions/test_routing.py test_a_relationship_between_two_databases
          test_a_child_cannot_leave_its_parent
        """,
    ),
    mutation(
        "routing: an unknown bind goes unnoticed with one database",
        Change(
            "flask_scopedsession._sessions.routing:routed_if_needed",
            " or models.refresh().says_binds",
            "",
        ),
        tests="""
        sessions/test_routing.py test_a_bind_that_is_not_configured
        """,
    ),
    mutation(
        "session: connections stay out when close() fails",
        Change(
            "flask_scopedsession._scopes.teardown:close_session",
            "discard(session, transaction, ledger, error)",
            "pass",
        ),
        tests="""
        scopes/test_failures.py test_an_error_in_close
          test_one_of_two_binds_that_cannot_roll_back
        sessions/test_plain.py test_close_that_raises
        """,
    ),
    mutation(
        "scope: a failure in teardown ends the closing",
        Change(
            "flask_scopedsession._scopes.teardown:end_scope",
            "except BaseException as interrupt:  # noqa: BLE001 - raised at the end",
            "except ZeroDivisionError as interrupt:",
        ),
        tests="""
        scopes/test_failures.py test_an_error_in_the_comparison_of_changes
        """,
    ),
    mutation(
        "lost work: no driver is asked",
        Change(
            "flask_scopedsession._pools.drivers:is_transaction_open",
            None,
            """
def is_transaction_open(driver: t.Any) -> bool | None:
    return True
""",
        ),
        tests="""
        databases/test_lost_work.py test_true_on_all
        live/test_reader.py test_a_select_on_sqlite_is_no_transaction
        """,
    ),
    mutation(
        "lost work: what was committed before counts as lost",
        Change(
            "flask_scopedsession._pools.slot:Slot.forget_writes",
            None,
            """
def forget_writes(self) -> None:
    pass
""",
        ),
        tests="""
        scopes/test_lost_work.py test_only_the_last_transaction_is_counted
        databases/test_lost_work.py test_true_on_all
        """,
    ),
    mutation(
        "lost work: what a rollback loses is not noted",
        Change(
            "flask_scopedsession._pools.statements:_note_loss",
            None,
            """
def _note_loss(slot: Slot, is_prepared: bool = False) -> None:
    pass
""",
        ),
        tests="""
        scopes/test_lost_work.py test_lost_work_is_reported
        databases/test_lost_work.py test_true_on_all
        """,
    ),
    mutation(
        "lost work: a rollback to a savepoint is not noticed",
        Change(
            "flask_scopedsession._pools.writes:_note_savepoint",
            'if action == "back":',
            "if ():",
        ),
        tests="""
        databases/test_lost_work.py test_true_on_all
        """,
    ),
    mutation(
        "lost work: what a scope rolls back to its savepoint is not counted",
        Change(
            "flask_scopedsession._pools.writes:_note_savepoint",
            "lost.update(slot.writes - left)",
            "pass",
        ),
        tests="""
        scopes/test_lost_work.py test_lost_work_is_reported
          test_a_session_within_a_transaction_of_a_test
        """,
    ),
    mutation(
        "lost work: a view that handled its error is reported",
        Change(
            "flask_scopedsession._scopes.lost_work:is_judged",
            " and not getattr(context, HANDLED, False)",
            "",
        ),
        tests="""
        scopes/test_lost_work.py test_a_handled_error_is_no_lost_work
        scopes/test_wsgi.py test_lost_work_by_the_response
        """,
    ),
    mutation(
        "lost work: a view that answers with an error is reported",
        Change(
            "flask_scopedsession._scopes.lost_work:is_judged",
            "getattr(context, STATUS, 0) < 400",
            "True",
        ),
        tests="""
        scopes/test_lost_work.py test_no_false_alarm
        scopes/test_wsgi.py test_lost_work_by_the_response
          test_the_status_is_the_final_one
        """,
    ),
    mutation(
        "pool: an interrupted return costs a slot",
        Change(
            "flask_scopedsession._pools.tracked_pool:TrackedPool._do_return_conn",
            """
        finally:
            self._return_untracked(record)
""",
            """
        except ZeroDivisionError:
            pass
        self._return_untracked(record)
""",
        ),
        tests="""
        scopes/test_interrupts.py test_at_any_point
        """,
    ),
    mutation(
        "pool: an interrupted checkout stays in the list of waiters",
        Change(
            "flask_scopedsession._pools.tracked_pool:TrackedPool.connect",
            """
        finally:
            if account.waiting:
                waiting = account.waiting.pop(scope.ident, None)
""",
            """
        waiting = account.waiting.pop(scope.ident, None)
""",
        ),
        tests="""
        scopes/test_interrupts.py test_at_any_point
        whole/concurrency/test_gevent_kills.py
          test_killed_while_it_waits_for_the_pool
        """,
    ),
    mutation(
        "meters: samples that arrive during an aggregation are lost",
        Change(
            "flask_scopedsession._pools.meters:Meter.aggregate",
            """
        samples = [take() for _ in range(len(self.samples))]
        if samples:
            self._count(samples)
""",
            """
        samples = list(self.samples)
        if samples:
            self._count(samples)
        self.samples.clear()
""",
        ),
        tests="""
        pools/test_meters.py test_samples_that_arrive_during_an_aggregation
        """,
    ),
    mutation(
        "meters: two threads aggregate at a time",
        Change(
            "flask_scopedsession._pools.meters:Meters.aggregate",
            "if self._lock.acquire(False):",
            "if True:",
        ),
        Change(
            "flask_scopedsession._pools.meters:Meters.aggregate",
            """
            finally:
                self._lock.release()
""",
            """
            finally:
                pass
""",
        ),
        tests="""
        pools/test_meters.py test_a_return_does_not_wait_for_a_reader
        """,
    ),
    mutation(
        "stacks: frames are held while their thread goes on",
        Change(
            "flask_scopedsession._runtime.stacks:stack_of_thread",
            None,
            """
def stack_of_thread(ident: int) -> RawStack:
    import time
    frame, found = sys._current_frames().get(ident), []
    while frame is not None:
        time.sleep(0)  # lets the thread run, as any instruction may
        found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)
""",
        ),
        tests="""
        runtime/test_stacks.py test_the_locals_of_a_thread_are_freed_in_that_thread
        """,
    ),
    mutation(
        "stacks: garbage is collected while frames are held",
        Change(
            "flask_scopedsession._runtime.stacks:_read", "chain(off, map", "chain(map"
        ),
        tests="runtime/test_stacks.py test_the_collector_is_off_during_a_reading",
    ),
    mutation(
        "ledger: one hold is timed twice",
        Change(
            "flask_scopedsession._pools.account:PoolAccount.check_in",
            """
    if scope is None:
        return
""",
            """
    if scope is None:
        scope = self.ledger.user()
""",
        ),
        tests="""
        pools/test_account.py test_detach
        """,
    ),
    mutation(
        "slots: a connection whose return was interrupted is still out",
        Change(
            "flask_scopedsession._pools.slot:Slot.is_out",
            "return entry is not None and entry.in_use",
            "return True",
        ),
        tests="""
        scopes/test_interrupts.py test_at_any_point
        pools/test_account.py test_an_interrupted_return
        """,
    ),
    mutation(
        "slots: a connection whose return was interrupted belongs to its last scope",
        Change(
            "flask_scopedsession._pools.account:PoolAccount.check_out",
            "if self.hands_out_again:",
            "if True:",
        ),
        tests="""
        pools/test_account.py test_an_interrupted_return
        """,
    ),
    mutation(
        "slots: a connection that all threads share goes to the last scope",
        Change(
            "flask_scopedsession._pools.account:PoolAccount.check_out",
            "if self.hands_out_again:",
            "if ():",
        ),
        tests="""
        pools/test_account.py test_a_shared_connection_has_one_holder
        """,
    ),
    mutation(
        "slots: the statements of another thread in a context are not counted",
        Change(
            "flask_scopedsession._pools.account:PoolAccount.check_out",
            "slot.sender = scope.parent or scope",
            "slot.sender = scope",
        ),
        tests="""
        live/test_reader.py test_statements_of_another_thread_in_a_context
        """,
    ),
    mutation(
        "slots: a connection in the pool keeps its last scope",
        Change(
            "flask_scopedsession._pools.account:PoolAccount.check_in",
            "slot.scope, slot.sender = None, NOBODY",
            "slot.scope = None",
        ),
        tests="""
        pools/test_account.py test_scopes_are_freed_without_the_collector
        """,
    ),
    mutation(
        "reader: a connection that was returned meanwhile is shown",
        Change(
            "flask_scopedsession._live.reader:Reader._pool",
            "for each, holder in found if each.is_out",
            "for each, holder in found",
        ),
        tests="""
        live/test_reader.py
          test_a_connection_that_goes_on_to_another_thread_during_the_reading
        """,
    ),
    mutation(
        "teardown: nothing is learnt from a leak",
        Change(
            "flask_scopedsession._scopes.teardown:end_scope",
            "scope.last.account.record_checkouts(scope)",
            "pass",
        ),
        tests="""
        pools/test_leaks.py test_the_second_leak_shows_the_line
        """,
    ),
    mutation(
        "pool: a timeout is not explained",
        Change(
            "flask_scopedsession._pools.tracked_pool:TrackedPool.connect",
            "explain_timeout(error, account, account.timed_out(since, scope))",
            "account.timed_out(since, scope)",
        ),
        tests="""
        pools/test_account.py test_timeouts
        """,
    ),
    mutation(
        "fork: the child has its parent's meters",
        Change(
            "flask_scopedsession._pools.account:PoolAccount.reset",
            """
        self.meters = Meters(self.in_use)
""",
            """
        if not hasattr(self, "meters"):
            self.meters = Meters(self.in_use)
""",
        ),
        tests="""
        whole/concurrency/test_fork.py test_forking_while_another_thread_is_inside
        """,
    ),
    mutation(
        "fork: the child has its parent's ledger lock",
        Change(
            "flask_scopedsession._scopes.ledger:Ledger.reset",
            "self._lock = allocate_lock()",
            """
if not hasattr(self, "_lock"):
    self._lock = allocate_lock()
""",
        ),
        tests="""
        whole/concurrency/test_fork.py test_forking_while_another_thread_is_inside
        """,
    ),
    mutation(
        "fork: the child has its parent's lock of the live view",
        Change(
            "flask_scopedsession._live.worker:LiveView.after_fork",
            "self._lock = allocate_lock()",
            "pass",
        ),
        tests="""
        whole/concurrency/test_fork.py test_forking_while_another_thread_is_inside
        """,
    ),
    mutation(
        "fork: the child has its parent's connections",
        Change(
            "flask_scopedsession._application:Application._leave_to_parent",
            "engine.dispose(close=False)",
            "pass",
        ),
        tests="""
        whole/concurrency/test_fork.py test_multiprocessing
          test_forking_while_another_thread_is_inside
          test_forking_while_others_check_out_and_in
        """,
    ),
    mutation(
        "fork: the child closes what rests in a pool without tracking",
        Change(
            "flask_scopedsession._application:Application._leave_to_parent",
            "_inherited.append(engine.pool)",
            "pass",
        ),
        tests="""
        whole/concurrency/test_fork.py test_nothing_inherited_is_ever_closed
        """,
    ),
    mutation(
        "fork: the child closes what is checked out",
        Change(
            "flask_scopedsession._application:Application._leave_to_parent",
            "_inherited.extend(account.inherited())",
            "pass",
        ),
        tests="""
        whole/concurrency/test_fork.py test_nothing_inherited_is_ever_closed
        """,
    ),
    mutation(
        "fork: the control thread goes on",
        Change(
            "flask_scopedsession._control.server:Server.before_fork",
            "if self._loop is not None:",
            "if ():",
        ),
        tests="""
        whole/concurrency/test_control_fork.py
          test_a_fork_of_a_process_that_serves
          test_a_process_of_multiprocessing test_a_fork_inside_of_a_request
        """,
        since=(3, 12),  # older ones do not warn
    ),
    mutation(
        "shutdown: forks know of each app for ever",
        Change(
            "flask_scopedsession._runtime.fork:_applications",
            "= weakref.WeakSet()",
            "= set()",
        ),
        tests="""
        whole/test_shutdown.py test_a_thousand_apps
        """,
    ),
    mutation(
        "shutdown: a dropped app leaves its connections open",
        Change(
            "flask_scopedsession._application:Application.__init__",
            "weakref.finalize(app, _dispose, self.all_engines, self.accounts)",
            "weakref.finalize(app, int)",
        ),
        tests="""
        whole/test_shutdown.py test_an_engine_that_outlives_its_app
        """,
    ),
    mutation(
        "shutdown: a dropped app waits for the control thread's next check",
        Change(
            "flask_scopedsession._live.worker:LiveView.start",
            "weakref.finalize(app, SERVER.wake).atexit = False",
            "pass",
        ),
        tests="""
        whole/test_shutdown.py test_a_dropped_app_does_not_wait_for_the_next_check
        """,
    ),
    mutation(
        "shutdown: the ledger keeps its app",
        Change(
            "flask_scopedsession._scopes.ledger:Ledger.__init__",
            "self.app = weakref.ref(app)",
            "self.app = lambda: app",
        ),
        tests="""
        whole/test_shutdown.py test_dropped_without_dispose
        """,
    ),
    mutation(
        "shutdown: the interpreter's end leaves the control files",
        Change(
            "flask_scopedsession._control.server",
            "atexit.register(SERVER.close)",
            "pass",
        ),
        tests="""
        whole/test_shutdown.py test_the_interpreter_exits
          test_sigterm_and_a_request_that_ends_in_time
        """,
    ),
    mutation(
        "shutdown: dispose() leaves the control socket",
        Change(
            "flask_scopedsession._extension:ScopedSession.dispose",
            "application.live.stop()",
            "pass",
        ),
        tests="""
        whole/test_shutdown.py test_a_thousand_apps
        """,
    ),
    mutation(
        "shutdown: an aborted worker leaves no snapshot",
        Change(
            "flask_scopedsession._application:Application.end_scopes_with_contexts.remove_sessions",
            "live.aborted()",
            "pass",
        ),
        tests="""
        whole/test_shutdown.py test_a_sync_worker_that_is_aborted
        """,
    ),
    mutation(
        "dashboard: nobody asks authorize()",
        Change(
            "flask_scopedsession.dashboard._blueprint:dashboard",
            "return _refusal(current_app.ensure_sync(authorize)())",
            "return None",
        ),
        tests="""
        dashboard/test_page.py test_nobody_unauthorised_sees_anything
          test_who_may_see_it_is_asked_in_each_request
        """,
    ),
    mutation(
        "dashboard: an async authorize() is not awaited",
        Change(
            "flask_scopedsession.dashboard._blueprint:dashboard",
            "current_app.ensure_sync(authorize)()",
            "authorize()",
        ),
        tests="""
        dashboard/test_page.py test_who_may_see_it_is_asked_in_each_request
        """,
    ),
    mutation(
        "dashboard: without authorize(), it can be registered",
        Change(
            "flask_scopedsession.dashboard._blueprint:dashboard",
            "if authorize is None and not state.app.debug:",
            "if ():",
        ),
        tests="""
        dashboard/test_page.py test_without_authorize_it_is_refused
        """,
    ),
    mutation(
        "dashboard: without authorize(), it is served after debug mode",
        Change(
            "flask_scopedsession.dashboard._blueprint:dashboard",
            "return None if current_app.debug else abort(403)",
            "return None",
        ),
        tests="""
        dashboard/test_page.py test_without_authorize_it_is_served_in_debug_mode_only
        """,
    ),
    mutation(
        "dashboard: a redirect to the login admits",
        Change(
            "flask_scopedsession.dashboard._blueprint:_refusal",
            "if isinstance(answer, AnyResponse) or",
            "if",
        ),
        tests="""
        dashboard/test_page.py test_nobody_unauthorised_sees_anything
        """,
    ),
    mutation(
        "dashboard: Flask-Login's anonymous user is admitted",
        Change(
            "flask_scopedsession.dashboard._blueprint:_refusal",
            'getattr(answer, "is_authenticated", True)',
            "True",
        ),
        tests="""
        dashboard/test_page.py test_nobody_unauthorised_sees_anything
          test_the_current_user_of_flask_login
        """,
    ),
    mutation(
        "dashboard: a coroutine or generator is true",
        Change(
            "flask_scopedsession.dashboard._blueprint:_refusal",
            "is_unfinished(answer) or",
            "",
        ),
        tests="""
        dashboard/test_page.py test_what_is_always_true_admits_nobody
          test_a_coroutine_admits_nobody
        """,
    ),
    mutation(
        "watch: each long hold is logged",
        Change(
            "flask_scopedsession._pools.watch:_may_report_long",
            "if now < account.log_long_at:",
            "if ():",
        ),
        tests="""
        pools/test_watch.py test_a_connection_that_was_held_long
        """,
    ),
    mutation(
        "watch: a leak is logged again and again",
        Change(
            "flask_scopedsession._pools.watch:_report_leak",
            "if not account.ledger.first_report(about):",
            "if ():",
        ),
        tests="""
        pools/test_watch.py test_a_leak
        """,
    ),
    mutation(
        "watch: what is noticed first counts as a leak",
        Change(
            "flask_scopedsession._pools.watch:look_at_holders",
            """
    if noticed in before:
        _report_leak(account, holder, holders)
""",
            """
    if noticed:
        _report_leak(account, holder, holders)
""",
        ),
        tests="""
        pools/test_watch.py test_what_an_error_keeps_for_a_moment_is_no_leak
        """,
    ),
    mutation(
        "watch: a long hold that a record came too soon for is never logged",
        Change(
            "flask_scopedsession._pools.watch:look_at_holders",
            "new[noticed] = holder",
            "new[noticed] = holder; account.noticed.add(noticed)",
        ),
        tests="""
        pools/test_watch.py
          test_a_connection_is_reported_later_if_there_was_a_record_just_now
        """,
    ),
    mutation(
        "watch: a slow handler's time counts as the view's",
        Change(
            "flask_scopedsession._pools.tracked_pool:TrackedPool.connect",
            "since = now = perf_counter()  # handlers of the log may have taken long",
            "",
        ),
        tests="pools/test_watch.py test_the_time_that_a_handler_takes",
    ),
    mutation(
        "watch: a return logs, also inside the garbage collector",
        Change(
            "flask_scopedsession._pools.account:PoolAccount.check_in",
            "self.look_at = 0.0",
            """
    self.look_at = 0.0
    from .watch import report_returned
    report_returned(self.ledger)
""",
        ),
        tests="""
        pools/test_watch.py test_a_return_by_the_garbage_collector_logs_nothing_itself
        """,
    ),
    mutation(
        "watch: a long hold that is over is not logged",
        Change(
            "flask_scopedsession._application:Application.end_scopes_with_contexts",
            "if ledger.returned_late:",
            "if ():",
        ),
        tests="""
        pools/test_watch.py test_a_connection_that_was_held_long
        """,
    ),
    mutation(
        "ended scopes: those of threads and async functions count, too",
        Change(
            "flask_scopedsession._scopes.ledger:Ledger.leave",
            "self.live.discard(scope)",
            "self.live.discard(scope); self.ended.add(0.0, 0)",
        ),
        tests="""
        scopes/test_ended.py test_a_request_counts_once
        async_sessions/test_views.py test_a_request_counts_once
        """,
    ),
    mutation(
        "workers: one that removes its own files counts as lost",
        Change(
            "flask_scopedsession._control.directory:_swept",
            "if os.fstat(held).st_nlink:",
            "if True:",
        ),
        tests="""
        control/test_directory.py test_a_sweep_tells_which_workers_were_lost
        """,
    ),
    mutation(
        "workers: one that was lost is not logged",
        Change(
            "flask_scopedsession._control.server:Server.lost",
            "if found:",
            "if ():",
        ),
        tests="""
        whole/workers/test_json_logs.py test_each_kind_of_trouble
        """,
    ),
    mutation(
        "isolation: SQLite's rows are fetched when others have written",
        Change(
            "flask_scopedsession.testing._connection:IsolatedCursor._send",
            'database.dialect.name == "sqlite"',
            "False",
        ),
        tests="""
        testing/test_isolate.py test_rows_that_are_fetched_late
        """,
    ),
    mutation(
        "isolation: two transactions share a savepoint",
        Change(
            "flask_scopedsession.testing._database:Database.claim",
            "owner is None or not owner.has_written",
            "True",
        ),
        tests="""
        testing/test_at_random.py test_users_at_random
        testing/test_isolate.py test_second_transaction_of_a_thread
          test_parallel_threads
        testing/test_whole.py test_deadlock_is_an_error
        """,
    ),
    mutation(
        "isolation: a statement ends the real transaction unseen",
        Change(
            "flask_scopedsession.testing._database:Database.executed",
            "is_transaction_open(real) is False",
            "False",
        ),
        tests="""
        testing/test_refused.py test_statement_that_ends_every_transaction
        """,
    ),
    mutation(
        "isolation: a forked process uses its parent's connection",
        Change(
            "flask_scopedsession.testing._database:Database.check",
            "os.getpid() != self._pid",
            "False",
        ),
        tests="""
        testing/test_refused.py test_forked_process
        """,
    ),
    mutation(
        "isolation: a connection that was checked out before commits",
        Change(
            "flask_scopedsession.testing._isolation:_account_of",
            "_is_out(account)",
            "False",
        ),
        tests="""
        testing/test_refused.py test_connection_that_is_out_at_the_beginning
        """,
    ),
    mutation(
        "isolation: dispose() ends it",
        Change(
            "flask_scopedsession._pools.tracked_pool:TrackedPool.recreate",
            "pool.serve(self.server)",
            "pool.serve(None)",
        ),
        tests="""
        testing/test_whole.py test_dispose_inside
        """,
    ),
    mutation(
        "isolation: what is checked out goes on after the end",
        Change(
            "flask_scopedsession.testing._isolation:Bind.take_back",
            "connection.end()",
            "pass",
        ),
        tests="""
        testing/test_whole.py test_thread_that_outlives_the_block
          test_pool_is_as_before
        """,
    ),
    mutation(
        "isolation: deferred constraints are never checked",
        Change(
            "flask_scopedsession.testing._database:Database.commit",
            "if who.has_written:",
            "if False:",
        ),
        tests="""
        testing/test_refused.py test_deferred_constraints
        """,
    ),
)


def find(where: str, package: Path) -> tuple[Path, str, int, int]:
    """Return a definition's file, that file's text, and where in it it begins and ends.

    :param package: The folder of the package, or of its copy.
    :raises NotFound: There is no such module, or no such name in it.
    """
    module, _, name = where.partition(":")
    top, *parts = module.split(".")
    path = package.joinpath(*parts)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if top != PACKAGE or not path.is_file():
        raise NotFound(f"{where}: there is no module {module}")
    text = path.read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    if not name:
        return path, text, 0, len(text)
    for part in name.split("."):
        found = [each for each in _within(node) if part in _names(each)]
        if len(found) != 1:
            raise NotFound(f"{where}: {len(found)} definitions of {part}")
        [node] = found
    assert isinstance(node, ast.stmt)
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(each.lineno for each in decorators)])
    lines = text.splitlines(keepends=True)
    begin = len("".join(lines[: first - 1]))
    return path, text, begin, len("".join(lines[: node.end_lineno]))


def _within(node: ast.AST) -> list[ast.stmt]:
    """Return the statements of a body, those within ``if`` and ``try`` included."""
    found: list[ast.stmt] = []
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.stmt):
            found.append(each)
            if not isinstance(each, ast.ClassDef | ast.FunctionDef):
                found += _within(each)
    return found


def _names(node: ast.stmt) -> set[str]:
    """Return what a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {each.id for each in targets if isinstance(each, ast.Name)}


def changed(change: Change, package: Path) -> tuple[Path, str]:
    """Return a file of the package, and its text with one change.

    :raises NotFound: What is to be replaced is not there exactly once.
    """
    path, text, begin, end = find(change.where, package)
    inside = text[begin:end]
    if change.old is None:
        indent = inside[: len(inside) - len(inside.lstrip(" "))]
        inside = textwrap.indent(textwrap.dedent(change.new).strip("\n"), indent) + "\n"
    else:
        inside = _replaced(inside, change)
    text = text[:begin] + inside + text[end:]
    try:
        compile(text, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise NotFound(f"{change.where}: {error} after the change") from error
    return path, text


def _replaced(inside: str, change: Change) -> str:
    """Replace a part of a line, or lines, whatever their indentation is."""
    old = textwrap.dedent(change.old or "").strip("\n")
    new = textwrap.dedent(change.new).strip("\n")
    if "\n" not in old + new:
        pattern = re.escape(old)
    else:
        first, *others = old.split("\n")
        others = [f"(?P=indent){re.escape(line)}" if line else "" for line in others]
        pattern = "\n".join([f"^(?P<indent> *){re.escape(first)}", *others]) + "$"
    found = list(re.finditer(pattern, inside, re.MULTILINE))
    if len(found) != 1:
        raise NotFound(f"{change.where}: {len(found)} times:\n{old}\nin:\n{inside}")
    [match] = found
    indent = match.groupdict().get("indent") or ""
    return (
        inside[: match.start()] + textwrap.indent(new, indent) + inside[match.end() :]
    )


def apply(changes: tuple[Change, ...], package: Path) -> None:
    """Change a copy of the package.

    :raises NotFound: It is not as a change expects it.
    """
    for change in changes:
        path, text = changed(change, package)
        path.write_text(text, encoding="utf-8")


def red(tests: tuple[str, ...], changed: Path) -> tuple[set[str], str]:
    """Run tests with a changed package; return those that fail, and the output.

    Where the run hangs or crashes, which some test may do, each test runs alone.
    """
    command = [sys.executable, "-c", RUN, "-q", "-rfE", "-p", "no:cacheprovider"]
    env = {**os.environ, "PYTHONPATH": str(changed)}
    try:
        done = subprocess.run(
            [*command, "--tb=line", *tests],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        output = "hung"
    else:
        output = "crashed" if done.returncode < 0 else done.stdout
    if output in ("hung", "crashed"):
        if len(tests) == 1:
            return set(tests), output
        each = [red((test,), changed) for test in tests]
        return set().union(*(found for found, _ in each)), each[-1][1]
    found = re.findall(r"^(?:FAILED|ERROR) ([^\s\[]+)", output, re.MULTILINE)
    return set(tests) & set(found), output


def main(words: list[str]) -> int:
    """Run what was asked for; return how many mutations were not noticed."""
    unnoticed = 0
    for name, changes, tests, since in MUTATIONS:
        if words and not any(word in name for word in words):
            continue
        if sys.version_info < since:
            continue
        with tempfile.TemporaryDirectory() as changed:
            ignored = shutil.ignore_patterns("__pycache__")
            copy = Path(changed, PACKAGE)
            shutil.copytree(ROOT / PACKAGE, copy, ignore=ignored)
            apply(changes, copy)
            found, output = red(tests, Path(changed))
        green = [test for test in tests if test not in found]
        unnoticed += bool(green)
        print(f"{'GREEN' if green else 'red  '} {name}", flush=True)
        for test in green:
            print(f"      {test}", flush=True)
        if green:
            print("      " + "\n      ".join(output.splitlines()[-8:]), flush=True)
    return unnoticed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
