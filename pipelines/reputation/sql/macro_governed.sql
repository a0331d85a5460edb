-- Whether a rule over some actions, of a version in force during [from_us, to_us), is about an event.
CREATE OR REPLACE TEMP MACRO governed(action_type, t, actions, from_us, to_us) AS
    list_contains(actions, action_type) AND t >= from_us AND t < to_us;
