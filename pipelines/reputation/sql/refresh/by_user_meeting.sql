CREATE OR REPLACE TABLE by_user.meeting (key_hash UBIGINT, user_hash UBIGINT, t BIGINT)
