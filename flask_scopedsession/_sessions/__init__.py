"""Sessions: the registry behind ``db.session``, and which database a table is in."""
