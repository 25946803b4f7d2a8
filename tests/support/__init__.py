"""Shared by the tests of several packages: servers, clients, programs, and fakes."""
