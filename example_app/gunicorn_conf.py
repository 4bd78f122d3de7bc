"""How the demo and ``make serve`` run gunicorn."""

workers = 3
worker_class = "gthread"
threads = 4
keepalive = 30
graceful_timeout = 3

# Newer gunicorns open a control socket of their own, at one path for all.
control_socket_disable = True
