-- The users with very many events who were touched and are to be computed later. A hash stands for all who share it.
CREATE OR REPLACE TEMP TABLE put_off (user_hash UBIGINT)
