"""Several processes that serve the clients of one server: the protocol between the first process and its workers."""
