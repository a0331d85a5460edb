-- The outbox of karmalake on SQLite 3.
CREATE TABLE outbox (
    sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,  -- in order of insertion; never given out again
    id VARCHAR(256) NOT NULL,                             -- event_id
    aggregatetype VARCHAR(256) DEFAULT 'user' NOT NULL,
    aggregateid VARCHAR(256) NOT NULL,                    -- user_id, the key of the Kafka record
    type VARCHAR(256) NOT NULL,                           -- action_type
    payload BLOB NOT NULL,                                -- karmalake.v1.Event in Protobuf
    timestamp DATETIME DEFAULT (strftime('%Y-%m-%d %H:%M:%f000', 'now')) NOT NULL  -- when the row was added, UTC
);
