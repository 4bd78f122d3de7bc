"""Metrics of pools and sessions, for OpenTelemetry and Prometheus.

Nothing of it is imported unless the application does: :mod:`.opentelemetry` needs the
extra ``otel``, :mod:`.prometheus` the extra ``prometheus``.
"""
