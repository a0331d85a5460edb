-- What the steps are prepared over in a refresh: the events of the touched users and of their witnesses.
CREATE OR REPLACE TEMP TABLE recalled (
    user_hash UBIGINT,
    event_id VARCHAR,
    user_id VARCHAR,
    action_type VARCHAR,
    event_time TIMESTAMP WITH TIME ZONE,
    metadata MAP (VARCHAR, VARCHAR)
)
