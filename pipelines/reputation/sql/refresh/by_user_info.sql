-- What by_user holds: the events of which lake up to which version, and the rules that `meeting` is for.
CREATE TABLE IF NOT EXISTS by_user.info (
    version BIGINT,
    last_batch VARCHAR,
    lake_id VARCHAR,
    duckdb_version VARCHAR,
    completions VARCHAR
)
