"""Real servers for tests: Apache Kafka, Redis, PostgreSQL and a TCP proxy between a client and any of them.

The test that needs a server starts it on a free port of 127.0.0.1; it is killed with the test process, however that
ends. Nothing here fakes a service, and `pipelines` imports nothing from here.
"""
