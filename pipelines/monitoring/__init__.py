"""Metrics and health of the long-lived processes, for Prometheus and probes."""
