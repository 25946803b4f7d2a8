"""Web applications around the token endpoints of docs/cookbook/tokens.md: sessions, and a way to sign in."""
