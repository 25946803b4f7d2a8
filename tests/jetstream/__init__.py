"""The rooms of the JetStream broker, one by one."""
