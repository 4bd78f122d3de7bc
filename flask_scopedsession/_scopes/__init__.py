"""Scopes: what uses a session or connection, and how that use ends.

``context``    Flask's current context and request.
``scope``      the record of one scope: whose it is, its sessions and counters.
``jobs``       the task, job or event of a library that runs.
``ledger``     all scopes of an application.
``kinds``      where scopes are kept: on the context, by thread, by a key.
``teardown``   how a scope ends; ``lost_work``, what it leaves uncommitted.
``responses``  how the request was answered.
``many_statements``  scopes that send many statements, and what they repeat.
``streams``    abandoned streams and lasting contexts, with Flask 3.1 and older.
"""
