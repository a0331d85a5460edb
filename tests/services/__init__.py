"""Real servers for tests: Apache Kafka, Redis, PostgreSQL and others, and a TCP proxy in front of any of them.

A test that needs a server starts it on a free port of 127.0.0.1; it is killed with the test process, however that ends.
No service is faked here, and `pipelines` imports nothing from here.
"""
