"""What the database servers report about connections, locks and limits.

``ping``                   one connection outside the pool.
``postgresql``, ``mysql``  the queries; ``facts``, their results.
``comparison``             the results, joined with what the workers report.
"""
