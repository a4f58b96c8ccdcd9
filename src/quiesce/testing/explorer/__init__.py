"""All interleavings of a small cluster of quiesce's own machines, with faults; see docs/reliability-explorer.md.

`scenario` says what is explored, `model` is the cluster as a plain tuple and all of its next steps, `search` goes
through them, `rules` says what must never happen.
"""
