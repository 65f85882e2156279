"""The shards of a global batch: functions that run in turn, and numbers gathered from each piece."""
