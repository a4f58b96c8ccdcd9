"""Pools: a supervisor that starts, watches and reaps worker processes, and the workers that run tasks.

supervise  ->  supervisor (thin driver)  ->  supervisor_session (pure)
               worker (data loop), control (control thread)  ->  worker_session (pure)
               runner (one attempt), scope (all that it has begun), hooks (how it is known)
table: the memory that both share
"""
