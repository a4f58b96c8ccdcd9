"""The pure state machine of all tasks. `machine.Registry` is the whole; start reading there.

events -> handlers (sessions, spawning, stopping, forcing, pools, attempts, system) -> facts -> apply -> state
                                                                                    \\-> effects -> the broker
"""
