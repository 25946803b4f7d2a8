"""Who may have what, and in which order: sessions, the dispatcher, presence. It knows no socket and no reactor."""
