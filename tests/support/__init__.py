"""What the tests of several packages share: servers, clients, programs, and stand-ins."""
