"""What the commands print: tables, pages and charts.

``page``      lines and tables that fit the terminal.
``sections``  what all pages share.
``pools``     pool-status; ``load``, the views that used a pool; ``servers``, --server.
``sessions``  session-status.
``advice``    pool-advise.
``ping``      db-ping.
``charts``    bars and histories of --watch.
"""
