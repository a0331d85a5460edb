-- The outbox of karmalake on MySQL 8.0.13 or MariaDB 10.6, or newer.
CREATE TABLE outbox (
    sequence BIGINT NOT NULL AUTO_INCREMENT,  -- in order of insertion, not of commit
    id VARCHAR(256) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,             -- event_id
    aggregatetype VARCHAR(256) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL DEFAULT 'user',
    aggregateid VARCHAR(256) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,    -- user_id, the key of the record
    type VARCHAR(256) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,           -- action_type
    payload MEDIUMBLOB NOT NULL,              -- karmalake.v1.Event in Protobuf
    timestamp DATETIME(6) NOT NULL DEFAULT (utc_timestamp(6)),  -- when the row was added, UTC
    PRIMARY KEY (sequence)
) ENGINE=InnoDB;
