"""From what the pools measured to the pool sizes that ``pool-advise`` recommends.

``demand``     the load that a pool was under; ``erlang``, the formulas.
``recommend``  the sizes; ``reasons`` and ``warnings``, in words.
``report``     the result.
"""
