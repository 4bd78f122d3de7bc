"""What this process reports about itself, and how the other workers are asked.

``reader``  account and ledger to snapshot, with the line shown for each holder.
``usage``   what the meters have measured.
``worker``  what this process answers, and when it starts to answer.
``survey``  asking the other workers.
"""
