"""What this process reports about itself, and how the other workers are asked.

``reader``    account and ledger to snapshot; ``lines``, the line shown for a holder.
``sessions``  what is read of one session.
``usage``     what the meters have measured.
``worker``    what this process answers, and when it starts to answer.
``survey``    asking the other workers.
"""
