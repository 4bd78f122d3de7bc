"""Engines and their pools, and the account kept of every connection.

``engine``        settings to engines; ``memory``, SQLite's databases in memory.
``tracked_pool``  the pool subclass; ``fair_queue``, the order of waiting threads.
``account``       connections, waiters and timeouts; ``meters``, how long they took.
``slot``          what is known of one connection.
``statements``    what the dialect executes, commits and rolls back.
``counting``      what a block of code sends.
``writes``        what statements change; ``sharing``, two threads on one connection.
``explanations``  errors of a pool and of SQLite that name the holders.
``drivers``       what drivers say; ``naming``, names of connections at the server.
"""
