"""Programs that show quiesce at work."""
