"""``app.config`` to frozen settings. Touches no file, socket or driver."""
