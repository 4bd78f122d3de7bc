"""The interpreter: native threads, forks, stacks, and places in the code.

``native``  threads and locks that gevent has not patched.
``fork``    what a child process must reset.
``stacks``  reading another thread's stack safely.
``logs``    the logger, and the fields of its records.
``places``  a frame as ``path:line function`` of the application's own code.
"""
