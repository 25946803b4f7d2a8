"""Several processes that serve the clients of one server: how the first of them and its workers talk to each other."""
