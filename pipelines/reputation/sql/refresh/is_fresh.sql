(version > getvariable('since_version') OR t >= getvariable('since_as_of'))
