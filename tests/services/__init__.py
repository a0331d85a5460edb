"""Real servers for tests: Apache Kafka, Redis, PostgreSQL and a TCP proxy between a client and any of them.

Every server is started by the test that needs it, listens on a free port of 127.0.0.1 and dies with the test
process, however that ends. Nothing here fakes a service, and nothing here is imported by `pipelines`.
"""
