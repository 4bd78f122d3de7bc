"""From what the pools measured to the pool sizes that ``pool-advise`` recommends."""
