"""What Prometheus and probes are told of the long-lived processes."""
