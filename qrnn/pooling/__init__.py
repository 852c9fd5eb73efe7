"""One operator, several backends: `operator.pool` and `operator.linear_recurrence`."""
