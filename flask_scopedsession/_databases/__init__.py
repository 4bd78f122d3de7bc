"""What the databases report: whether they answer, and about connections and locks.

``ping`` makes one connection outside the pool. ``postgresql`` and ``mysql`` ask a
server for its ``facts``, and ``comparison`` joins these with what the workers report.
"""
