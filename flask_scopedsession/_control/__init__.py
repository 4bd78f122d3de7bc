"""How commands reach the workers: Unix sockets in a private directory.

``directory``  where the sockets are, and which of them belong to live workers.
``server``     the thread that answers; ``endpoint``, one application's socket.
``client``     asks all workers.
``protocol``   the bytes of requests and replies.
"""
