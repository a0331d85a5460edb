"""The producers: four teams of a ride service, with libraries of Kafka and Avro. Nothing here knows karmalake."""
