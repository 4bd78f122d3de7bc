"""The gunicorn configuration of the demo and of ``make serve``."""

workers = 3
worker_class = "gthread"
threads = 4
keepalive = 30
graceful_timeout = 3

# Newer versions of gunicorn open a control socket, at one path for all instances.
control_socket_disable = True
