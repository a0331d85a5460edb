"""The images and compose.yaml in a real container engine: `make test-containers`."""
