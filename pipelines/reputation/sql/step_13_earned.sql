-- What each emission earns before caps. counts marks the row by which an event is counted: a cap or an expiry removes
-- points, not the event. Points from time have no emission, and no event to count.
CREATE OR REPLACE TEMP VIEW earned AS
SELECT
    * EXCLUDE (penalties_expire_us, expired) REPLACE (
        CASE WHEN counts THEN rating END AS rating,
        CASE WHEN expired THEN 'expired' ELSE reason END AS reason
    ),
    CASE WHEN reason = 'granted' AND NOT expired THEN points ELSE 0 END AS granted
FROM (
    SELECT
        *,
        coalesce(reason = 'granted' AND emission_no = 0, false) AS counts,
        reason = 'granted'
            AND points < 0
            AND coalesce(t <= getvariable('as_of') - penalties_expire_us, false) AS expired
    FROM $source
)
