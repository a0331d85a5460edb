INSERT INTO $name
$query
