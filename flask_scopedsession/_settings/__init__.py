"""``app.config`` to frozen settings. Touches no file, socket or driver.

``config`` has the result, ``keys`` the table of keys, ``binds`` and ``urls`` the
databases, ``options`` those of engines and sessions, ``values`` the single values.
"""
