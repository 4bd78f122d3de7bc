"""Sessions, and the databases that tables are in.

``registry``      the registry behind ``db.session``.
``factory``       the sessionmakers.
``placement``     which database a model or table is in, and what decides.
``models``        the application's models, and the binds that a statement needs.
``routing``       sessions that send each statement there.
``transactions``  blocks that commit or roll back, retries, and ``release()``.
``unsaved``       what a session has changed and not committed.
"""
