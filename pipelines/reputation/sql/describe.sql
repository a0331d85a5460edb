INSERT INTO snapshot_info
VALUES (?, make_timestamptz(?), ?, ?, ?, make_timestamptz(?), ?, ?, ?)
