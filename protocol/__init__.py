"""The messages between client, broker, worker and supervisor, one module for each direction.

    from_client -> broker -> to_worker       from_worker -> broker -> to_client
                             to_supervisor   from_supervisor

The broker binds two endpoints: *control*, where requests to stop travel and which each side reads
first, and *data*, where payloads travel. Every peer connects to both and says hello on both.
`codec` turns messages into frames and back, strictly.
"""

from typing import Final

#: Neighbours (N and N-1) understand each other; others are refused in words.
PROTOCOL_VERSION: Final = 1
