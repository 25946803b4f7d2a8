"""What is counted, said, traced, and told of the server's health."""
