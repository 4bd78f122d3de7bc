"""Sessions, and the databases that tables are in.

``registry``  the registry behind ``db.session``.
``factory``   the sessionmakers.
``routing``   which database a class or table is in.
"""
