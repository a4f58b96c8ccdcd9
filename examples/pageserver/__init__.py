"""A small multi-tenant page server: what the runtimes, kinds and stops of quiesce are for. See
README.md.
"""
