"""The gunicorn configuration of the demo and of ``make serve``."""

workers = 3
worker_class = "gthread"
threads = 4
keepalive = 30
graceful_timeout = 3

# The workers start faster and share memory. Each opens its own connections.
preload_app = True

# Newer versions of gunicorn open a control socket, at one path for all instances.
control_socket_disable = True
