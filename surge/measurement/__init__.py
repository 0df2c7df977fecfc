"""What a run says at a few of its states: one file for each statistic, in `statistics`."""
