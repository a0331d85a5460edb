INSERT INTO $name BY NAME
$rows
