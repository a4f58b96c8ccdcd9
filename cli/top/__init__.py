"""`quiesce top`: the live view. `source` asks the broker, `views` make rows of it, `app` shows them (Textual)."""
