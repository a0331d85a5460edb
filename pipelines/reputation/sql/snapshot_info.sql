-- One row: what this warehouse reflects, by which rules, and who made it when. policy is the whole policy as JSON.
CREATE TABLE snapshot_info (
    lake_version BIGINT NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    policy_name VARCHAR NOT NULL,
    policy_version VARCHAR NOT NULL,
    policy VARCHAR NOT NULL,
    derived_at TIMESTAMP WITH TIME ZONE NOT NULL,
    karmalake_version VARCHAR NOT NULL
)
