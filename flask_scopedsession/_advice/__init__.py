"""From what the pools measured to the sizes that ``pool-advise`` recommends.

``demand`` measures the load, ``erlang`` has the formulas, ``recommend`` applies them,
``reasons`` and ``warnings`` say why, ``report`` is the result. Pure: no I/O.
"""
