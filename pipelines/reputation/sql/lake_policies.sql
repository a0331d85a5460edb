-- Which policy was put in force when; the newest one is in force.
CREATE OR REPLACE VIEW policies AS
$source
