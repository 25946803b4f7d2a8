"""What the tests of several wings share: servers, clients, programs, and stand-ins."""
