"""How a second terminal reaches the workers: sockets in a safe directory."""
