"""quiesce.broker."""
