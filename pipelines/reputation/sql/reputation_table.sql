CREATE TABLE reputation AS
$query
