"""``db.async_session``: imported only where ``SQLALCHEMY_ASYNC_BINDS`` is configured.

``calls``     the async functions that Flask runs; each closes the sessions made in it.
``binds``     an application's async engines, and the account of their connections.
``pool``      what opens those connections.
``registry``  which session belongs to the running call.
"""
