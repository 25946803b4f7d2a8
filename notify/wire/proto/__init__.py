"""Code that protoc makes of proto/notify.proto: see ``make proto``."""
