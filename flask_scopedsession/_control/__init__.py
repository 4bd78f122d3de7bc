"""How commands reach the workers: Unix sockets in a private directory."""
