-- One row: what this warehouse reflects, by which rules, and who made it when. policy is the whole policy as JSON;
-- recipe names the lake and the statements it was made with: a refresh continues only its own. last_batch made lake_version.
CREATE OR REPLACE TABLE snapshot_info (
    lake_version BIGINT NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    policy_name VARCHAR NOT NULL,
    policy_version VARCHAR NOT NULL,
    policy VARCHAR NOT NULL,
    derived_at TIMESTAMP WITH TIME ZONE NOT NULL,
    karmalake_version VARCHAR NOT NULL,
    recipe VARCHAR NOT NULL,
    last_batch VARCHAR
)
