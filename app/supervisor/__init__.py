"""`adjourn serve`: everything on one machine, started in order, kept alive, stopped in reverse.

    embedded servers (if no URLs) -> schema -> first key -> one listening socket -> N api processes -> a worker

Owns the processes and nothing of their work. SIGINT or SIGTERM stops all of it; SIGUSR1 replaces the processes one by
one while the others answer.
"""
