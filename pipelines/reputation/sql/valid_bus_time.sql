-- The time of a record where it is one, 2000-01-01 to 9999-12-31: lakes of earlier releases hold what producers wrote.
CASE WHEN epoch_us(bus_time) BETWEEN 946684800000000 AND 253402214400000000 THEN bus_time END AS bus_time
