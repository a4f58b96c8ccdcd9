"""quiesce.cli."""
