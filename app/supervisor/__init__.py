"""`adjourn serve`: everything on one machine, started in order, kept alive, stopped in reverse.

    embedded servers (if no URLs) -> schema -> first key -> one listening socket -> N api processes -> a worker

Owns the processes and none of their work. Promises that a process that ends is started again, that the listening socket stays
open while processes are replaced, and that no process outlives the supervisor. SIGINT, SIGTERM or SIGHUP stops everything;
SIGUSR1 replaces the processes one by one while the others serve.
"""
