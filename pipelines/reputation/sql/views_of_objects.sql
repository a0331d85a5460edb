SELECT 1 FROM duckdb_views() WHERE contains(sql, '''s3://') LIMIT 1
